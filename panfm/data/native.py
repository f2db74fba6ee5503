"""Scans that keep their own voxels: how thick a voxel counts, and where the organ's crop is cut.

An organ with `spacing: native` is never resampled. A scan with thick slices has fewer voxels across them, and the patch
embedding sums its kernel there instead (`panfm.models.patch_embed`), so that every scan of the organ gives the same grid of
tokens: patch masks, positions and losses do not know the difference. Along each axis a voxel counts as 2**degree times as
thick as along the finest one, degree = floor(log2(spacing / finest spacing)); a crop has the grid's sides divided by that.

Source: Luo et al. 2023 (SPAD-Nets), arXiv:2312.07630. There one axis is the depth, and its degree is measured against the
finer of the other two; here each axis is measured alike, since a coronal kidney is thick along another axis than an axial
heart. Where one axis is thick the two agree.
Legend: XYZ voxels (the anatomical axes closest to RAS+).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from panfm.config import OrganGrid, Spacing
from panfm.data.geometry import Affine, Region, Voxels, bounding_box

Triple = tuple[int, int, int]

_orientations: Any = nib.orientations  # untyped in nibabel

_MAX_DEGREE = 5
"""The largest that a recipe may ask for (`OrganGrid.max_degree`)."""

_ROUNDING = 1e-3
"""Relative. Headers hold float32, so slices of 2.4 mm over pixels of 0.6 mm may read 3.9999998: still degree 2."""


def thickness_of(spacing_mm: Sequence[float], max_degree: int) -> Triple:
    """How many of the finest steps a voxel counts for along each axis, XYZ; each 1, 2, 4 .. 2**max_degree."""
    finest = min(spacing_mm)
    x, y, z = (2 ** min(int(math.log2(step / finest * (1 + _ROUNDING))), max_degree) for step in spacing_mm)
    return x, y, z


def spacing_class(spacing_mm: Sequence[float], native: bool) -> str:
    """The word of `panfm.protocol.SPACINGS` for one prepared scan: on the study's grid, or how thick its thickest voxels are."""
    if not native:
        return "resampled"
    thickest = max(thickness_of(spacing_mm, _MAX_DEGREE))
    return "even" if thickest == 1 else f"thick_{thickest}"


def crop_shape(grid: OrganGrid, spacing_mm: Sequence[float]) -> Triple:
    """Voxels XYZ that the model sees of a scan with this spacing: the grid's, fewer along thick axes of a native organ."""
    x, y, z = grid.shape
    if grid.spacing is not Spacing.native:
        return x, y, z
    thick_x, thick_y, thick_z = thickness_of(spacing_mm, grid.max_degree)
    return x // thick_x, y // thick_y, z // thick_z


def grid_settings(grid: OrganGrid) -> dict[str, Any]:
    """What of a grid decides the prepared voxels, as plain values for digests and statements."""
    settings = asdict(grid)
    unused = ("spacing_mm",) if grid.spacing is Spacing.native else ("spacing", "max_degree")
    return {
        name: value.name if isinstance(value, Spacing) else value
        for name, value in settings.items()
        if name not in unused
    }


@dataclass(frozen=True, slots=True)
class Crop:
    """Part of a scan, axes in the order closest to RAS+."""

    voxels: NDArray[np.float32] | NDArray[np.float16]
    """XYZ."""
    spacing_mm: tuple[float, float, float]
    """XYZ."""


def native_crop(voxels: Voxels, affine: Affine, organ: Region, grid: OrganGrid, margin: int, background: float) -> Crop:
    """Cut an organ out of its scan without resampling.

    Axes are permuted and flipped to the closest anatomical ones; an oblique scan stays oblique. The crop is centred on the
    organ's bounding box in voxels.

    Args:
        voxels: normalised, in the file's axis order.
        affine: voxels to RAS+ millimetres.
        organ: where the organ is, same shape; must not be empty.
        grid: of a native organ.
        margin: extra voxels on each side; along a thick axis these are thick voxels too.
        background: value of what lies outside the scan.
    """
    orientation = _orientations.io_orientation(affine)
    upright, region = (_orientations.apply_orientation(array, orientation) for array in (voxels, organ))
    steps = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(orientation[:, 0])]
    spacing_mm = (float(steps[0]), float(steps[1]), float(steps[2]))
    shape = [side + 2 * margin for side in crop_shape(grid, spacing_mm)]
    start = [(b.start + b.stop - side) // 2 for b, side in zip(bounding_box(region), shape, strict=True)]
    return Crop(_window(upright, start, shape, background), spacing_mm)


def _window(voxels_XYZ: Voxels, start: Sequence[int], shape: Sequence[int], background: float) -> Voxels:
    """A copy of part of a volume; where it reaches beyond, background."""
    window = np.full(tuple(shape), background, dtype=np.float32)
    spans = [
        (max(first, 0), min(first + side, stored), first)
        for first, side, stored in zip(start, shape, voxels_XYZ.shape, strict=True)
    ]
    inside = tuple(slice(low - first, high - first) for low, high, first in spans)
    window[inside] = voxels_XYZ[tuple(slice(low, high) for low, high, _ in spans)]
    return window
