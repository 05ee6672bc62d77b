"""utils/device.py: what a run computes with on a processor, by what that processor has."""

import pytest
import torch

from utils import device
from utils.device import prefers_bf16


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "maker", "expected"),
    [
        (True, False, "AuthenticAMD", True),
        (True, False, "GenuineIntel", False),  # at half of float32's rate
        (True, True, "GenuineIntel", True),
        (False, True, "GenuineIntel", True),
        (False, False, "AuthenticAMD", False),
        (False, False, "GenuineIntel", False),
    ],
)
def test_bf16_only_where_the_processor_gains_by_it(
    avx512_bf16, amx, maker, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nvendor_id\t: {maker}\nflags\t\t: fpu\n")
    monkeypatch.setattr(device, "CPU_FACTS", facts)
    assert prefers_bf16(torch.device("cpu")) is expected
