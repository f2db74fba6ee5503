"""One subject's prepared organs on one sheet: a row per scan, the three middle planes, the patch grid over them, as PNG.

It is for the hospital's own eyes, as every picture of a scan is. Sides are as long as they are in millimetres, so that a
wrong spacing shows as a squeezed organ, and letters say which side of the patient is where.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from panfm.errors import DataError
from panfm.reporting.palette import INK, MUTED, organ_colour
from panfm.reporting.slices import PLANES, OrganPicture, grey_window, page_slice

_OPPOSITE = {"R": "L", "A": "P", "S": "I"}
_INCHES = 2.6
"""Side of one picture: at 150 dots an inch a 48-voxel side gets eight dots a voxel."""
_DOTS_PER_INCH = 150
_PATCHES, _LETTERS = "#4fc3f7", "#ffd54f"
"""Lines and letters that read on black, on white and on all greys between."""


def write_contact_sheet(path: Path, pictures: Sequence[OrganPicture], captions: Sequence[str]) -> None:
    """Draw the sheet of one subject and write it as PNG; arguments as of `contact_sheet`.

    Raises: DataError when there is no picture, or the file cannot be written.
    """
    figure = contact_sheet(pictures, captions)
    try:
        figure.savefig(path, dpi=_DOTS_PER_INCH, format="png", metadata={"Software": "panfm"})
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}); choose another --out") from error


def contact_sheet(pictures: Sequence[OrganPicture], captions: Sequence[str]) -> Figure:
    """The sheet of one subject.

    Args:
        pictures: one for each scan, in the order of the rows.
        captions: what stands beside each row.
    Raises: DataError when there is no picture.
    """
    if not pictures:
        raise DataError("nothing to draw: the subject has no prepared scan")
    figure = Figure(figsize=(len(PLANES) * _INCHES + 1.2, len(pictures) * _INCHES + 0.5), layout="constrained")
    figure.suptitle(f"{pictures[0].subject}, as prepared", fontsize=11, color=INK)
    rows = figure.subplots(len(pictures), len(PLANES), squeeze=False)
    organs = tuple(dict.fromkeys(picture.organ for picture in pictures))
    for row, picture, caption in zip(rows, pictures, captions, strict=True):
        _draw_row(row, picture)
        row[0].set_ylabel(caption, fontsize=8, color=organ_colour(picture.organ, organs))
    return figure


def _draw_row(row: Sequence[Axes], picture: OrganPicture) -> None:
    limits = grey_window(picture.volume)
    for axes, (plane, across, (horizontal, vertical), left, top) in zip(row, PLANES, strict=True):
        width, height = (picture.volume.shape[axis] * picture.spacing_mm[axis] for axis in (horizontal, vertical))
        axes.imshow(
            page_slice(picture.volume, across),
            cmap="gray",
            vmin=limits[0],
            vmax=limits[1],
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        _draw_patches(axes, picture, (horizontal, vertical), width, height)
        axes.set_title(plane, fontsize=8, color=MUTED)
        axes.set(xticks=[], yticks=[])
        _write_sides(axes, left, top)


def _draw_patches(axes: Axes, picture: OrganPicture, along: tuple[int, int], width: float, height: float) -> None:
    across_mm, down_mm = (picture.patch * picture.spacing_mm[axis] for axis in along)
    axes.vlines(np.arange(across_mm, width - across_mm / 2, across_mm), 0, height, color=_PATCHES, lw=0.4, alpha=0.7)
    axes.hlines(np.arange(down_mm, height - down_mm / 2, down_mm), 0, width, color=_PATCHES, lw=0.4, alpha=0.7)


def _write_sides(axes: Axes, left: str, top: str) -> None:
    """Which side of the patient each edge is."""
    edges = (
        (left, 0, 0.5, "left", "center"),
        (_OPPOSITE[left], 1, 0.5, "right", "center"),
        (top, 0.5, 1, "center", "top"),
        (_OPPOSITE[top], 0.5, 0, "center", "bottom"),
    )
    for letter, x, y, horizontal, vertical in edges:
        axes.text(x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical, fontsize=7, color=_LETTERS)
