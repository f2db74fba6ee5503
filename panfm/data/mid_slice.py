"""Two small slices through the middle of an organ, upright, so that a person sees at a glance what a table cannot tell.

A wrong organ, a swapped axis or a label map that slipped passes every number and no look.
Legend: rows and columns of a page, right and front (or head) of the patient first.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from panfm.data.geometry import Region, region_on_grid, resample, target_affine, world_bounds
from panfm.data.scan import Scan
from panfm.errors import DataError

_Pixel = TypeVar("_Pixel", bound=np.generic)

_PIXELS = 96
"""A side: enough to know an organ by; ten thousand scans fit in 400 MB."""
_FIELD = 1.4
"""Field of view: the organ's longest side, and some of its surroundings."""
_PLANES = (("axial", 2), ("coronal", 1))


@dataclass(frozen=True, slots=True)
class MidSlice:
    """One plane of a scan: a patient's picture, which stays at the hospital."""

    plane: str
    grey: NDArray[np.uint8]
    """Intensities between the extreme percents, shape (rows, columns)."""
    organ: NDArray[np.bool_]
    """Where the organ is drawn, the same shape."""


def mid_slices(scan: Scan, organ_XYZ: Region, drawn_XYZ: Region) -> tuple[MidSlice, ...]:
    """The axial and the coronal slice through the middle of an organ, square, upright.

    Args:
        scan: the whole scan.
        organ_XYZ: what lies in the middle; must not be empty.
        drawn_XYZ: what is marked as the organ; may be empty.
    """
    low_mm, high_mm = world_bounds(organ_XYZ, scan.affine)
    centre_mm = (low_mm + high_mm) / 2
    pixel_mm = max(float((high_mm - low_mm).max()) * _FIELD, 8 * max(scan.spacing_mm)) / _PIXELS
    window = _window(scan, organ_XYZ)
    return tuple(_mid_slice(scan, drawn_XYZ, plane, axis, centre_mm, pixel_mm, window) for plane, axis in _PLANES)


def _window(scan: Scan, organ_XYZ: Region) -> tuple[float, float]:
    """Grey limits: the organ's own intensities and as much again on both sides, within what the scan holds."""
    lowest, highest = (float(value) for value in np.percentile(scan.voxels, (1, 99)))
    low, high = (float(value) for value in np.percentile(scan.voxels[organ_XYZ], (2, 98)))
    width = high - low
    low, high = max(low - width, lowest), min(high + width, highest)
    return (low, high) if high > low else (low, low + 1.0)


def _mid_slice(
    scan: Scan,
    drawn_XYZ: Region,
    plane: str,
    axis: int,
    centre_mm: NDArray[np.float64],
    pixel_mm: float,
    window: tuple[float, float],
) -> MidSlice:
    shape = [_PIXELS] * 3
    shape[axis] = 1
    grid = target_affine(centre_mm, shape, [pixel_mm] * 3)
    low, high = window
    voxels = np.take(resample(scan.voxels, scan.affine, grid, shape, low), 0, axis=axis)
    grey = (255 * np.clip((voxels - low) / (high - low), 0, 1)).astype(np.uint8)
    try:
        drawn = region_on_grid(drawn_XYZ, scan.affine, shape, grid)
    except DataError:  # the middle of two kidneys may hold neither
        drawn = np.zeros(shape, dtype=np.bool_)
    return MidSlice(plane, _on_page(grey), _on_page(np.take(drawn, 0, axis=axis)))


def _on_page(plane: NDArray[_Pixel]) -> NDArray[_Pixel]:
    """Both axes of the page run against RAS+: right, front and head come first."""
    return plane[::-1, ::-1].T
