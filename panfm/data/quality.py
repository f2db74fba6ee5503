"""The checks that a scan must pass before it may count, each a small function from facts to findings.

nibabel opens most broken files without a word, so the project looks for itself. A finding carries a stable code, for
tables and tests, and one line for the person who must mend the file. A check never reads a disk: `nifti.py` does.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a scan."""

    code: str
    """Stable word for tables and tests."""
    message: str
    """What was expected, what came, what to do."""


def shape_findings(shape: Sequence[int]) -> tuple[Finding, ...]:
    """One volume of three dimensions; singletons after the third are dropped by the reader."""
    extra = [side for side in shape[3:] if side != 1]
    text = " x ".join(str(side) for side in shape)
    if len(shape) < 3:
        return (Finding("not_3d", f"a volume needs three axes, got {text}; export the whole series"),)
    if extra:
        return (Finding("not_3d", f"one volume expected, got {text}; choose one volume and save it alone"),)
    if min(shape) < 1:
        return (Finding("empty", f"every axis needs at least one voxel, got {text}; export the scan again"),)
    return ()


def dtype_findings(dtype: np.dtype[np.generic]) -> tuple[Finding, ...]:
    """Plain numbers: no colour, no complex values."""
    if dtype.fields is not None:
        return (Finding("colour", "voxels are RGB colours, not intensities; export the grey-scale scan"),)
    if dtype.kind == "c":
        return (Finding("complex", "voxels are complex numbers; export the magnitude image"),)
    if dtype.kind not in "iuf":
        return (Finding("dtype", "voxels are of a type that cannot be read; export the scan as int16 or float32"),)
    return ()


def affine_findings(affine: NDArray[np.float64]) -> tuple[Finding, ...]:
    """A finite, invertible map from voxels to millimetres."""
    if not np.isfinite(affine).all():
        return (Finding("affine_not_finite", "the affine holds NaN or infinity; restore sform or qform"),)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(float(np.linalg.det(affine[:3, :3])))
    # Relative, so that neither microscopy nor a scout passes or fails by its scale: a box squeezed to a millionth is flat.
    if volume <= 1e-6 * float(np.prod(lengths)):
        return (Finding("affine_singular", "the affine squeezes the volume flat; restore sform or qform"),)
    return ()


def spacing_findings(spacing_mm: Sequence[float]) -> tuple[Finding, ...]:
    """Positive, finite distances between voxels."""
    if all(math.isfinite(step) and step > 0 for step in spacing_mm):
        return ()
    text = " x ".join(f"{step:g}" for step in spacing_mm)
    return (Finding("spacing", f"voxel spacing should be positive millimetres, got {text}; correct the header"),)


def scaling_findings(slope: float, intercept: float) -> tuple[Finding, ...]:
    """A slope that is finite, zero or NaN (both mean "not scaled"), and an intercept to go with it."""
    scaled = slope != 0 and not math.isnan(slope)
    if not scaled or (math.isfinite(slope) and math.isfinite(intercept)):
        return ()
    return (Finding("scaling", f"intensities scaled by {slope:g} and {intercept:g} mean nothing; correct the header"),)


def size_findings(claimed_bytes: int, available_bytes: int) -> tuple[Finding, ...]:
    """A header that claims no more than the file can hold; looked at before any memory is taken."""
    if claimed_bytes <= available_bytes:
        return ()
    message = f"the header claims {claimed_bytes:,} bytes but the file holds at most {available_bytes:,}; copy it again"
    return (Finding("too_short", message),)


def content_findings(voxels: NDArray[np.float32]) -> tuple[Finding, ...]:
    """Finite intensities that differ from each other."""
    low, high = float(voxels.min()), float(voxels.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        return (Finding("not_finite", "some voxels are NaN or infinite; export the scan again or set them to 0"),)
    if low == high:
        return (Finding("constant", f"every voxel is {low:g}; there is no image, export the scan again"),)
    return ()
