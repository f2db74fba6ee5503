"""panfm: hospitals pre-train one pan-organ imaging foundation model together, and no scan leaves its hospital.

This package is the library and the only thing in the wheel: pure ideas, no Flower. The doors that speak Flower are
`client/` and `server/`; the rehearsal is `simulation/`. Importing `panfm` loads nothing heavy: name the room you need.

In use: `panfm.load("runs/demo/model").embed({"brain": "t1.nii.gz", "liver": "liver.nii.gz"}).subject`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panfm.export.frozen_model import FrozenModel

__version__ = "0.1.0"


def load(folder: Path | str, device: str = "cpu") -> FrozenModel:
    """The exported model in a folder, ready to embed raw scans: see `panfm.export.frozen_model`.

    Raises: ConfigError when this machine has no such device; CheckpointError when there is no model, or it is damaged or of a
        newer panfm.
    """
    from panfm.export.frozen_model import (
        load as opened,
    )  # here: torch takes seconds to import, and most verbs do without

    return opened(folder, device)
