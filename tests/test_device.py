"""utils/device.py and utils/memory.py: devices, bf16 by the hardware, memory of the machine."""

import math
import os

import pytest
import torch

from utils import cgroup, compat, cpus, device, memory
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
    assert select_device("1") == select_device("cuda:1") == torch.device("cuda:1")
    assert select_device("auto", 1) == select_device("cuda", 1) == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")] * 4


@pytest.mark.parametrize("name", ["cuda:99", "99", "toaster"])
def test_select_device_names_the_available_ones(name):
    with pytest.raises(UserError, match=rf"--device {name}: not available \(choose from cpu"):
        select_device(name)


def test_default_workers_is_0_on_the_cpu():
    assert default_workers(torch.device("cpu"), 1) == 0
    assert 0 <= default_workers(torch.device("cuda"), 2) <= 8


@pytest.fixture
def limit(tmp_path, monkeypatch):
    """A function that writes files of a control group; at first this process has no limits."""
    monkeypatch.setattr(cgroup, "MEMBERSHIP_PATH", tmp_path / "membership")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)

    def write(membership, directory, **files):
        (tmp_path / "membership").write_text(membership)
        (tmp_path / directory).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / directory / name.replace("__", ".")).write_text(text)

    return write


def test_available_memory_reads_meminfo(tmp_path, monkeypatch, limit):
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO_PATH", meminfo)
    assert memory.available_memory() == math.inf  # not Linux
    meminfo.write_text("MemTotal:       2000 kB\nMemFree:  10 kB\nMemAvailable:   1500 kB\n")
    assert memory.available_memory() == 1500 * 1024


V1 = "9:name=systemd:/\n4:memory:/docker/1a\n2:cpu,cpuacct:/docker/1a\n"
V1_UNLIMITED = "9223372036854771712\n"


def test_available_memory_respects_the_limits_of_a_container(tmp_path, monkeypatch, limit):
    """All but the file cache counts as used; a limit of the group above holds, too."""
    monkeypatch.setattr(memory, "MEMINFO_PATH", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable: 5000000 kB\n")
    v2 = {"memory__current": "900\n", "memory__stat": "anon 1\nactive_file 30\ninactive_file 4\n"}
    limit("0::/job/step\n", "job/step", memory__max="max\n", **v2)
    assert memory.available_memory() == 5_000_000 * 1024
    limit("0::/job/step\n", "job", memory__max="1000\n", **v2)
    assert memory.available_memory() == 1000 - 900 + 34
    statistics = "active_file 1\ntotal_active_file 30\ntotal_inactive_file 4\n"
    v1 = {"memory__usage_in_bytes": "900\n", "memory__stat": statistics}
    limit(V1, "memory/docker/1a", memory__limit_in_bytes="1000\n", **v1)
    assert memory.available_memory() == 1000 - 900 + 34
    limit(V1, "memory/docker/1a", memory__limit_in_bytes=V1_UNLIMITED, **v1)
    assert memory.available_memory() == 5_000_000 * 1024
    limit(V1.replace("1a", "elsewhere"), "memory", memory__limit_in_bytes="950\n", **v1)
    assert memory.available_memory() == 950 - 900 + 34


def test_cpu_count_respects_affinity_and_quota(monkeypatch, limit):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert cpus.cpu_count() == 6
    limit("0::/\n", ".", cpu__max="max 100000\n")
    assert cpus.cpu_count() == 6
    limit("0::/\n", ".", cpu__max="250000 100000\n")
    assert cpus.cpu_count() == 2 and default_workers(torch.device("cuda"), 1) == 2
    limit(V1, "cpu/docker/1a", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert cpus.cpu_count() == 6
    limit(V1, "cpu/docker/1a", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n")
    assert cpus.cpu_count() == 1
