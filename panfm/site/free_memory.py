"""How much memory a device of this machine has left: asked before each training, and before a site's service is started."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")


def free_memory_gib(device: str) -> float | None:
    """Memory that a device has left now (GiB); None where that cannot be asked. A container's own limit is not known here."""
    try:
        if device.startswith("cuda"):
            return torch.cuda.mem_get_info(device)[0] / 2**30
        available = next(line for line in _MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(available.split()[1]) / 2**20
    except (OSError, StopIteration, ValueError, IndexError, RuntimeError, AssertionError):
        return None
