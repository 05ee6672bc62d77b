"""utils/device.py and utils/memory.py: devices, bf16 by the hardware, memory of the machine."""

import math

import pytest
import torch

from utils import compat, device, memory
from utils.device import default_workers, prefers_bf16, select_device
from utils.errors import UserError


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "vendor", "expected"),
    [
        (True, False, "AuthenticAMD", True),
        (True, False, "GenuineIntel", False),  # at half the rate of float32
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", True),
        (False, False, "AuthenticAMD", False),
        (False, False, "GenuineIntel", False),
    ],
)
def test_prefers_bf16_only_on_cpus_where_it_is_faster(
    avx512_bf16, amx, vendor, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(compat, "cpu_has_avx512_bf16", lambda: avx512_bf16)
    monkeypatch.setattr(compat, "cpu_has_amx", lambda: amx)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu\n")
    monkeypatch.setattr(device, "CPUINFO_PATH", cpuinfo)
    assert prefers_bf16(torch.device("cpu")) is expected


def test_select_device_with_several_processes():
    assert select_device("cpu", 1).type == "cpu"
    with pytest.raises(UserError, match="--device cuda:1: with several processes"):
        select_device("cuda:1", 0)


def test_select_device_gives_each_process_its_gpu(monkeypatch):
    """As on a machine with GPUs, which this one need not be."""
    current = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert select_device("auto") == select_device("cuda") == torch.device("cuda") and not current
    assert select_device("1") == torch.device("cuda:1") and not current
    assert select_device("auto", 1) == select_device("cuda", 1) == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")] * 2


@pytest.mark.parametrize("name", ["cuda:99", "99", "toaster"])
def test_select_device_names_the_available_ones(name):
    with pytest.raises(UserError, match=rf"--device {name}: not available \(choose from cpu"):
        select_device(name)


def test_default_workers_is_0_on_the_cpu():
    assert default_workers(torch.device("cpu"), 1) == 0
    assert 0 <= default_workers(torch.device("cuda"), 2) <= 8


def test_available_memory_reads_meminfo(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO_PATH", meminfo)
    assert memory.available_memory() == math.inf  # not Linux
    meminfo.write_text("MemTotal:       2000 kB\nMemFree:  10 kB\nMemAvailable:   1500 kB\n")
    assert memory.available_memory() == 1500 * 1024
