"""What reading gives, whatever the file was: one volume with its place in the world, and what had to be mended.

It is a file of its own because both readers (`nifti.py`, `dicom.py`) make it and everything behind them takes it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panfm.data.quality import Finding


@dataclass(frozen=True, slots=True)
class Scan:
    """One volume as stored on disk, in the file's own axis order."""

    voxels: NDArray[np.float32]
    """Scaled intensities, shape XYZ."""
    affine: NDArray[np.float64]
    """4 x 4, voxel indices to RAS+ millimetres."""
    spacing_mm: tuple[float, float, float]
    """Distance between voxel centres along each axis of the file (millimetres)."""
    digest: str
    """SHA-256 of the file's bytes, hexadecimal; of a DICOM series, see `panfm.data.reading.file_digest`."""
    repairs: tuple[Finding, ...] = ()
    """What was not as it should be, and how it was read all the same; empty for a sound file."""
