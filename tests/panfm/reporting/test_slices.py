"""A picture shows the right slice, the right way round, as long as it is in the body."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from panfm.errors import DataError
from panfm.reporting.slices import OrganPicture, View, views

SHAPE, PATCH, SPACING_MM = (4, 8, 12), 2, (1.0, 2.0, 3.0)


def picture(volume: Any = None, masked: Any = None, **changes: Any) -> OrganPicture:
    given = {
        "organ": "liver",
        "subject": "sub-01",
        "volume": np.zeros(SHAPE, np.float32) if volume is None else volume,
        "spacing_mm": SPACING_MM,
        "patch": PATCH,
        "masked_patches": np.zeros((2, 4, 6), bool) if masked is None else masked,
    }
    return OrganPicture(**{**given, **changes})


def view(picture_: OrganPicture, plane: str) -> View:
    return next(view for view in views(picture_) if view.plane == plane)


def pixels(view_: View) -> Any:
    return imread(io.BytesIO(base64.b64decode(view_.png)))[..., 0]


@pytest.mark.parametrize(
    ("plane", "voxel"),
    [
        # column and row of the page -> voxel: the first ones are the patient's right (x 3), front (y 7) and head (z 11)
        ("axial", lambda column, row: (3 - column, 7 - row, 6)),
        ("coronal", lambda column, row: (3 - column, 4, 11 - row)),
        ("sagittal", lambda column, row: (2, 7 - column, 11 - row)),
    ],
)
def test_right_front_and_head_lie_at_the_left_and_the_top(plane: str, voxel: Any) -> None:
    volume = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    seen = pixels(view(picture(volume), plane))
    low, high = np.percentile(volume, (1, 99))
    for row, column in np.ndindex(seen.shape):
        grey = np.clip((volume[voxel(column, row)] - low) / (high - low), 0, 1)
        assert seen[row, column] == pytest.approx(grey, abs=2.01 / 255)


def test_sides_are_in_millimetres() -> None:
    sizes = {view.plane: (view.width_mm, view.height_mm) for view in views(picture())}
    assert sizes == {"axial": (4.0, 16.0), "coronal": (4.0, 36.0), "sagittal": (16.0, 36.0)}


def test_a_masked_patch_is_shaded_where_its_voxels_are() -> None:
    masked = np.zeros((2, 4, 6), bool)
    masked[1, 3, 3] = True  # right, front, in the middle slice (voxel 6 of 12 lies in patch 3)
    assert view(picture(masked=masked), "axial").masked == "M0 0h2v4h-2z"
    assert view(picture(masked=masked), "sagittal").masked == "M0 12h4v6h-4z"
    assert view(picture(masked=masked), "coronal").masked == ""  # the middle of Y lies in patch 2


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_all_patches_masked_shades_all_of_the_slice(plane: str) -> None:
    shown = view(picture(masked=np.ones((2, 4, 6), bool)), plane)
    areas = [float(w) * float(h) for w, h in re.findall(r"h([\d.]+)v([\d.]+)h-", shown.masked)]
    assert sum(areas) == shown.width_mm * shown.height_mm


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf])
def test_a_flat_or_broken_volume_is_black_and_no_error(value: float) -> None:
    assert pixels(view(picture(np.full(SHAPE, value, np.float32)), "axial")).max() == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"volume": np.zeros((4, 8), np.float32)},
        {"volume": np.zeros((4, 8, 11), np.float32)},
        {"masked_patches": np.zeros((2, 4, 5), bool)},
        {"spacing_mm": (1.0, 0.0, 1.0)},
    ],
)
def test_a_picture_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="picture of liver"):
        picture(**changes)
