"""The sheet is one picture with a row per scan, patients the right way round, and the same bytes for the same scans."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.image import imread
from numpy.typing import NDArray

from panfm.errors import DataError
from panfm.reporting.contact_sheet import contact_sheet, write_contact_sheet
from panfm.reporting.slices import OrganPicture


def _picture(volume: NDArray[np.float32], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> OrganPicture:
    patches = np.zeros([side // 4 for side in volume.shape], dtype=np.bool_)
    return OrganPicture(
        organ="liver", subject="s-1", volume=volume, spacing_mm=spacing_mm, patch=4, masked_patches=patches
    )


def test_patients_lie_the_right_way_round_and_as_long_as_they_are() -> None:
    volume = np.zeros((16, 8, 12), dtype=np.float32)
    volume[15, 7, :] = 1.0  # RAS+: the patient's right front edge
    figure = contact_sheet([_picture(volume, (1.0, 2.0, 3.0))], ["liver"])
    axial, coronal, sagittal = figure.axes
    page = np.asarray(axial.images[0].get_array())
    assert page.shape == (8, 16)
    assert (page[0, 0], page[-1, -1]) == (1.0, 0.0)
    sizes = [tuple(axes.images[0].get_extent()) for axes in figure.axes]
    assert sizes == [(0, 16, 16, 0), (0, 16, 36, 0), (0, 16, 36, 0)]
    letters = [[(text.get_text(), text.get_position()) for text in axes.texts] for axes in figure.axes]
    assert letters[0] == [("R", (0, 0.5)), ("L", (1, 0.5)), ("A", (0.5, 1)), ("P", (0.5, 0))]
    assert [text for text, _ in letters[1]] == ["R", "L", "S", "I"]
    assert [text for text, _ in letters[2]] == ["A", "P", "S", "I"]
    assert [axes.get_title() for axes in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]


def test_patch_borders_lie_where_patches_meet() -> None:
    figure = contact_sheet([_picture(np.zeros((16, 8, 12), dtype=np.float32), (1.0, 2.0, 3.0))], ["liver"])
    upright, level = figure.axes[1].collections
    assert isinstance(upright, LineCollection)
    assert isinstance(level, LineCollection)
    assert [segment[0][0] for segment in upright.get_segments()] == [4.0, 8.0, 12.0]
    assert [segment[0][1] for segment in level.get_segments()] == [12.0, 24.0]


def test_a_row_for_each_scan_and_the_same_bytes_twice(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).standard_normal((16, 8, 12)).astype(np.float32)
    figure = contact_sheet([_picture(volume)] * 3, ["a", "b", "c"])
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["a", "b", "c"]
    for name in ("one", "again"):
        write_contact_sheet(tmp_path / f"{name}.png", [_picture(volume)], ["a"])
    assert imread(tmp_path / "one.png").ndim == 3
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_no_scan_and_no_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to draw"):
        write_contact_sheet(tmp_path / "sheet.png", [], [])
    with pytest.raises(DataError, match="choose another --out"):
        write_contact_sheet(tmp_path / "none" / "sheet.png", [_picture(np.zeros((4, 4, 4), dtype=np.float32))], ["a"])
