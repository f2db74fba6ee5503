"""What every test stands on: a quiet, single-threaded, repeatable process, and the way to the real scans."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

# Before torch, matplotlib or flwr is imported, because each reads its setting once, at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tiny tensors of tests lose more to threads than they gain
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import pytest
from hypothesis import settings

# Repeatable everywhere; no deadline, because a test asserts nothing about the speed of the machine it runs on.
settings.register_profile("panfm", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("panfm")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real scans (`brain_ixi/`, ...): $PANFM_REAL_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("PANFM_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "brain_ixi").is_dir():
        pytest.skip(f"no real scans in {folder}; say where they lie with PANFM_REAL_DATA")
    return folder
