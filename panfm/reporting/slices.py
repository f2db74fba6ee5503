"""The middle of a volume in three planes, as a small picture with the patch grid and the masks over it.

The picture is shown as a radiologist expects it: axial and coronal with the patient's right on the left of the page,
sagittal with the face to the left, head up, and every side as long as it is in millimetres. Grey values are an inline
PNG of one pixel a voxel; grid and masks are drawn over it as vectors.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from panfm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganPicture:
    """One subject's scan of one organ as the model saw it, and what was masked in one draw.

    Holds a patient's scan: it is shown in the hospital's own report and nowhere else.
    """

    organ: str
    subject: str
    """The hospital's own pseudonym."""
    volume: NDArray[np.float32]
    """Intensities, shape (X, Y, Z), RAS+: X grows to the patient's right, Y to the front, Z to the head."""
    spacing_mm: tuple[float, float, float]
    """Voxel spacing, XYZ."""
    patch: int
    """Voxels a side of a cubic patch; divides each side of the volume."""
    masked_patches: NDArray[np.bool_]
    """Shape (X, Y, Z) / patch: True where the student did not see the patch."""
    organ_masked: bool = False
    """The whole organ was hidden from the student in this draw."""

    def __post_init__(self) -> None:
        shape = np.shape(self.volume)
        if len(shape) != 3 or any(side < 1 or side % self.patch for side in shape):
            raise DataError(
                f"picture of {self.organ}: expected a volume of three sides, multiples of the patch {self.patch}, "
                f"got {shape}; give the crop that the model saw"
            )
        grid = tuple(side // self.patch for side in shape)
        if np.shape(self.masked_patches) != grid:
            raise DataError(
                f"picture of {self.organ}: expected masked patches of shape {grid}, "
                f"got {np.shape(self.masked_patches)}; give one value per patch, in the order of the axes"
            )
        if min(self.spacing_mm) <= 0:
            raise DataError(f"picture of {self.organ}: spacing must be above 0 mm, got {self.spacing_mm}")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One plane of a picture, ready to be drawn; lengths in millimetres from the upper left corner."""

    plane: str
    left: str
    """The patient's side at the left edge: R, A."""
    top: str
    width_mm: float
    height_mm: float
    png: str
    """Base64."""
    grid: str
    """SVG path of the patch borders."""
    masked: str
    """SVG path of the masked patches; empty when there is none."""
    description: str


PLANES = (("axial", 2, (0, 1), "R", "A"), ("coronal", 1, (0, 2), "R", "S"), ("sagittal", 0, (1, 2), "A", "S"))
"""Name, axis across the plane, axes along the page (across, down), and the patient's side at the left and the top.

All four page axes run against RAS+: right, front and head come first.
"""


def views(picture: OrganPicture) -> list[View]:
    """The axial, the coronal and the sagittal slice through the middle of the volume."""
    low, high = grey_window(np.asarray(picture.volume, dtype=np.float32))
    return [
        View(
            plane=name,
            left=left,
            top=top,
            width_mm=_millimetres(picture, axes[0]),
            height_mm=_millimetres(picture, axes[1]),
            png=_png(page_slice(np.asarray(picture.volume, dtype=np.float32), across), low, high),
            grid=_grid_path(picture, axes),
            masked=_masked_path(picture, across, axes),
            description=f"{name} slice through the middle of the {picture.organ} of {picture.subject}",
        )
        for name, across, axes, left, top in PLANES
    ]


def page_slice(volume: NDArray[np.float32], across: int) -> NDArray[np.float32]:
    """The middle slice as rows and columns of the page: head or front at the top, right or front at the left."""
    middle: NDArray[np.float32] = np.take(volume, volume.shape[across] // 2, axis=across)
    return middle[::-1, ::-1].T


def grey_window(volume: NDArray[np.float32]) -> tuple[float, float]:
    """Grey limits: all but the extreme percent of finite voxels; a flat or empty volume is shown black."""
    known = volume[np.isfinite(volume)]
    if known.size == 0:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(known, (1, 99)))
    return (low, high) if high > low else (low, low + 1.0)


def _png(pixels: NDArray[np.float32], low: float, high: float) -> str:
    with io.BytesIO() as file:
        known = np.nan_to_num(pixels.astype(np.float32), nan=low, posinf=low, neginf=low)
        imsave(file, known, cmap="gray", vmin=low, vmax=high, format="png", metadata={"Software": "panfm"})
        return base64.b64encode(file.getvalue()).decode("ascii")


def _millimetres(picture: OrganPicture, axis: int) -> float:
    return round(float(picture.volume.shape[axis] * picture.spacing_mm[axis]), 3)


def _patch_mm(picture: OrganPicture, axis: int) -> float:
    return picture.patch * picture.spacing_mm[axis]


def _grid_path(picture: OrganPicture, axes: tuple[int, int]) -> str:
    width, height = (_millimetres(picture, axis) for axis in axes)
    upright = (i * _patch_mm(picture, axes[0]) for i in range(1, picture.masked_patches.shape[axes[0]]))
    level = (i * _patch_mm(picture, axes[1]) for i in range(1, picture.masked_patches.shape[axes[1]]))
    return "".join([*(f"M{x:g} 0V{height:g}" for x in upright), *(f"M0 {y:g}H{width:g}" for y in level)])


def _masked_path(picture: OrganPicture, across: int, axes: tuple[int, int]) -> str:
    """The masked patches that the middle slice cuts, one rectangle each."""
    middle = picture.volume.shape[across] // 2 // picture.patch
    hidden = np.take(np.asarray(picture.masked_patches, dtype=bool), middle, axis=across)[::-1, ::-1].T
    width, height = (_patch_mm(picture, axis) for axis in axes)
    return "".join(
        f"M{column * width:g} {row * height:g}h{width:g}v{height:g}h{-width:g}z" for row, column in np.argwhere(hidden)
    )
