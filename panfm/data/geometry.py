"""Where an organ lies in the world, and one resampling from the scan's own voxels to the organ's upright grid.

Axis order, flips, obliqueness and spacing all live in the affine, so nothing is reoriented first: the target grid is
axis-aligned RAS+ in millimetres, centred on the organ, and each of its voxels asks the source for its value once.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from panfm.data.manifest import VoxelBox
from panfm.errors import DataError

Affine = NDArray[np.float64]
Voxels = NDArray[np.float32]
Region = NDArray[np.bool_]

_FWHM_TO_SIGMA = 2 * np.sqrt(2 * np.log(2))
_TRUNCATE = 3.0
"""Gaussian kernels end after this many sigma: 0.3 % of the weight lies beyond."""
_SAME_GRID_TOLERANCE_MM = 1e-3
"""float32 headers of one scanner session differ by rounding only, well below a micrometre per voxel."""


def target_affine(centre_mm: NDArray[np.float64], shape: Sequence[int], spacing_mm: Sequence[float]) -> Affine:
    """Affine of the upright RAS+ grid whose middle lies at a point of the world."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = centre_mm - np.asarray(spacing_mm) * (np.asarray(shape) - 1) / 2
    return affine


def to_world(indices: NDArray[np.float64], affine: Affine) -> NDArray[np.float64]:
    """Voxel indices, shape (n, 3), as points in RAS+ millimetres."""
    return indices @ affine[:3, :3].T + affine[:3, 3]


def world_bounds(region_XYZ: Region, affine: Affine) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest world coordinates of the voxel centres of a region, which must not be empty.

    A linear function over a column of voxels is extreme at the column's ends, so the ends are all that is looked at.
    """
    columns = np.argwhere(region_XYZ.any(axis=2))
    lines = region_XYZ[columns[:, 0], columns[:, 1]]
    first, last = lines.argmax(axis=1), lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.column_stack([columns, first]), np.column_stack([columns, last])])
    points = to_world(ends.astype(np.float64), affine)
    return points.min(axis=0), points.max(axis=0)


def centre_of(region_XYZ: Region, affine: Affine) -> NDArray[np.float64]:
    """Centre of a region's bounding box in the world (millimetres), whatever the scan's axis order."""
    low, high = world_bounds(region_XYZ, affine)
    return (low + high) / 2


def bounding_box(region_XYZ: Region) -> tuple[slice, slice, slice]:
    """The smallest voxel box around a region, which must not be empty."""
    x, y, z = (np.flatnonzero(region_XYZ.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    return (slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), slice(z[0], z[-1] + 1))


def box_region(box: VoxelBox, shape: Sequence[int]) -> Region:
    """A box of voxels as a region of the scan.

    Raises: DataError when the box does not lie within the scan.
    """
    if any(high > side for (_, high), side in zip(box, shape, strict=True)):
        text = " ".join(f"{low}:{high}" for low, high in box)
        raise DataError(f"box {text} does not fit a scan of {' x '.join(map(str, shape))} voxels; correct the box")
    region = np.zeros(tuple(shape), dtype=np.bool_)
    region[tuple(slice(low, high) for low, high in box)] = True
    return region


def same_grid(shape: Sequence[int], affine: Affine, other_shape: Sequence[int], other_affine: Affine) -> bool:
    """Whether two volumes have the same voxels at the same places, up to the rounding of their headers."""
    same = np.allclose(affine, other_affine, rtol=0, atol=_SAME_GRID_TOLERANCE_MM)
    return same and tuple(shape) == tuple(other_shape)


def share_inside(region_XYZ: Region, affine: Affine, grid_shape: Sequence[int], grid_affine: Affine) -> float:
    """Share of a region's voxels whose centres lie within another grid (0 to 1); the region must not be empty.

    Layer by layer, so that a whole body takes no list of all its voxels.
    """
    matrix = np.linalg.inv(grid_affine) @ affine
    last = np.asarray(grid_shape) - 0.5
    inside = 0
    for z in np.flatnonzero(region_XYZ.any(axis=(0, 1))):
        drawn = np.argwhere(region_XYZ[:, :, z])
        places = to_world(np.column_stack([drawn, np.full(len(drawn), z)]).astype(np.float64), matrix)
        inside += int(((places >= -0.5) & (places < last)).all(axis=1).sum())
    return inside / int(region_XYZ.sum())


def region_on_grid(region_XYZ: Region, affine: Affine, grid_shape: Sequence[int], grid_affine: Affine) -> Region:
    """A region drawn on one grid, carried to another through the world by nearest neighbour.

    Raises: DataError when no voxel of the region falls into the other grid.
    """
    shape = tuple(grid_shape)
    if same_grid(region_XYZ.shape, affine, shape, grid_affine):
        return region_XYZ
    matrix = np.linalg.inv(affine) @ grid_affine
    carried = ndimage.affine_transform(
        region_XYZ.view(np.uint8),
        matrix[:3, :3],
        matrix[:3, 3],
        output_shape=shape,
        order=0,
        mode="grid-constant",
        cval=0,
    ).astype(np.bool_)
    if region_XYZ.any() and not carried.any():
        raise DataError("the label map's organ lies outside the scan; pair the label map with its own scan")
    return carried


def resample(
    voxels_XYZ: Voxels, affine: Affine, grid_affine: Affine, shape: Sequence[int], background: float
) -> Voxels:
    """A scan's intensities on another grid: linear, smoothed first along axes on which the grid is coarser.

    Args:
        voxels_XYZ: source intensities in the file's axis order; background already replaced by `background`.
        affine: source voxels to world.
        grid_affine: target voxels to world.
        shape: target shape.
        background: value of everything outside the source.
    Source of the smoothing width: Cardoso et al. 2015, "Scale factor point spread function matching", MICCAI.
    """
    matrix = np.linalg.inv(affine) @ grid_affine
    sigmas = _antialias_sigmas(affine, grid_affine)
    reach = np.ceil(_TRUNCATE * sigmas).astype(int) + 2
    low, high = _needed_block(matrix, shape, reach, voxels_XYZ.shape)
    if (low >= high).any():
        return np.full(tuple(shape), background, dtype=np.float32)
    block = voxels_XYZ[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    # "nearest" and not the background: an organ cut by the field of view must not fade before its last slice.
    smooth = ndimage.gaussian_filter(block, sigmas, mode="nearest", truncate=_TRUNCATE)
    return ndimage.affine_transform(
        smooth,
        matrix[:3, :3],
        matrix[:3, 3] - low,
        output_shape=tuple(shape),
        order=1,
        mode="grid-constant",
        cval=background,
    )


def _antialias_sigmas(affine: Affine, grid_affine: Affine) -> NDArray[np.float64]:
    """Standard deviation of the smoothing along each source axis, in source voxels; 0 where the grid is not coarser."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    coarse = np.linalg.norm(np.linalg.norm(grid_affine[:3, :3], axis=0)[:, None] * directions, axis=0)
    missing: NDArray[np.float64] = np.sqrt(np.maximum(coarse**2 - steps**2, 0)) / (_FWHM_TO_SIGMA * steps)
    return missing


def _needed_block(
    matrix: Affine, shape: Sequence[int], reach: NDArray[np.int_], source_shape: Sequence[int]
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Half-open source ranges that the target grid can see, so that a whole-body scan is not smoothed for one organ."""
    corners = np.stack(np.meshgrid(*[(0.0, side - 1.0) for side in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    seen = to_world(corners, matrix)
    low = np.maximum(np.floor(seen.min(axis=0)).astype(int) - reach, 0)
    high = np.minimum(np.ceil(seen.max(axis=0)).astype(int) + 1 + reach, source_shape)
    return low, high
