"""How much memory is left: asked of the device, and unknown rather than wrong."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from panfm.site import free_memory
from panfm.site.free_memory import free_memory_gib


def test_free_memory_is_asked_of_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16777216 kB\nMemFree: 12 kB\nMemAvailable:    3145728 kB\n")
    monkeypatch.setattr(free_memory, "_MEMINFO", meminfo)
    assert free_memory_gib("cpu") == 3.0
    meminfo.write_text("MemTotal: 1 kB\n")
    assert free_memory_gib("cpu") is None
    monkeypatch.setattr(free_memory, "_MEMINFO", tmp_path / "absent")
    assert free_memory_gib("cpu") is None


def test_free_memory_of_a_device_that_is_not_there_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_device: str) -> tuple[int, int]:
        raise RuntimeError("no such device")

    monkeypatch.setattr("torch.cuda.mem_get_info", absent)
    assert free_memory_gib("cuda:7") is None
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _device: (2**31, 2**33))
    assert free_memory_gib("cuda") == 2.0
