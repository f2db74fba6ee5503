"""Native spacing: thick axes are found, and a crop holds the scan's own numbers, whatever the axis order of its file."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from panfm.config import OrganGrid, Spacing
from panfm.data.native import Crop, crop_shape, grid_settings, native_crop, spacing_class, thickness_of
from panfm.protocol import SPACINGS

AIR = -3.0

orientations: Any = nib.orientations


@pytest.mark.parametrize(
    ("spacing_mm", "thickness"),
    [
        ((1.0, 1.0, 1.0), (1, 1, 1)),
        ((1.3, 1.3, 8.0), (1, 1, 4)),  # short-axis cine: 8 / 1.3 = 6.2, degree 2
        ((3.0, 5.5, 3.0), (1, 1, 1)),  # coronal kidneys: 5.5 / 3 = 1.8, degree 0
        ((3.0, 6.0, 3.0), (1, 2, 1)),
        ((5.0, 0.8, 0.8), (4, 1, 1)),
        ((1.0, 1.0, 10.0), (1, 1, 8)),
        ((1.0, 1.0, 100.0), (1, 1, 8)),  # as thick as max_degree 3 allows
        ((0.6, 0.6, float(np.float32(2.4))), (1, 1, 4)),
        ((float(np.float32(0.6)), 0.6, 2.4), (1, 1, 4)),  # 3.9999998 by the rounding of the header
        ((1.0, 2.0, 4.0), (1, 2, 4)),
    ],
)
def test_thickness_of_known_scans(spacing_mm: tuple[float, float, float], thickness: tuple[int, int, int]) -> None:
    assert thickness_of(spacing_mm, max_degree=3) == thickness


STEPS = st.tuples(*[st.floats(0.05, 50.0)] * 3)


@given(STEPS, st.integers(0, 5))
def test_a_thick_voxel_is_as_long_as_its_taps_and_less_than_twice(
    spacing_mm: tuple[float, float, float], most: int
) -> None:
    thickness, finest = thickness_of(spacing_mm, most), min(spacing_mm)
    assert min(thickness) == 1
    for thick, step in zip(thickness, spacing_mm, strict=True):
        assert thick * finest <= 1.001 * step
        assert thick == 2**most or step < 2 * thick * finest


@given(STEPS, st.permutations(range(3)), st.sampled_from([0.5, 1024.0]))
def test_thickness_follows_the_axes_and_knows_no_unit(
    spacing_mm: tuple[float, float, float], axes: Sequence[int], unit: float
) -> None:
    thickness = thickness_of(spacing_mm, 3)
    assert thickness_of([spacing_mm[axis] for axis in axes], 3) == tuple(thickness[axis] for axis in axes)
    # Powers of two change no ratio by rounding.
    assert thickness_of([step * unit for step in spacing_mm], 3) == thickness


@pytest.mark.parametrize(
    ("spacing_mm", "native", "word"),
    [
        ((4.0, 4.0, 4.0), False, "resampled"),
        ((1.0, 1.0, 1.9), True, "even"),
        ((0.6, 0.6, 2.4), True, "thick_4"),
        ((5.0, 0.5, 0.5), True, "thick_8"),
        ((0.1, 0.1, 99.0), True, "thick_32"),
    ],
)
def test_class_of_spacing_is_one_of_few_words(spacing_mm: tuple[float, ...], native: bool, word: str) -> None:
    assert spacing_class(spacing_mm, native) == word
    assert word in SPACINGS


@given(st.lists(st.floats(0.05, 50.0), min_size=3, max_size=3), st.booleans())
def test_no_spacing_has_a_word_of_its_own(spacing_mm: list[float], native: bool) -> None:
    assert spacing_class(spacing_mm, native) in SPACINGS


def test_only_native_organs_have_other_crops() -> None:
    grid = OrganGrid(shape=[96, 96, 32])
    assert crop_shape(grid, (1.3, 1.3, 8.0)) == (96, 96, 32)
    native = OrganGrid(shape=[96, 96, 32], spacing=Spacing.native)
    assert crop_shape(native, (1.3, 1.3, 8.0)) == (96, 96, 8)
    assert crop_shape(native, (8.0, 1.0, 1.0)) == (12, 96, 32)


def test_settings_name_what_decides_the_voxels() -> None:
    """A resampled organ's settings are what they were before there was another way, so its store is not made again."""
    assert grid_settings(OrganGrid(shape=[8, 8, 8])) == {"shape": [8, 8, 8], "spacing_mm": [4.0, 4.0, 4.0]}
    native = OrganGrid(shape=[8, 8, 8], spacing_mm=[1.0, 1.0, 1.0], spacing=Spacing.native)
    assert grid_settings(native) == {"shape": [8, 8, 8], "spacing": "native", "max_degree": 3}


SHAPE = (20, 14, 6)
SPACING = (1.0, 1.5, 4.0)
ORGAN = (slice(9, 15), slice(2, 7), slice(2, 5))


def _numbered() -> NDArray[np.float32]:
    """Every voxel another number, so that a value tells where it came from."""
    return np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)


def _region() -> NDArray[np.bool_]:
    region = np.zeros(SHAPE, dtype=np.bool_)
    region[ORGAN] = True
    return region


def _oblique() -> NDArray[np.float64]:
    """12 degrees about X, closest axes RAS."""
    angle = np.deg2rad(12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * SPACING, (-30, 12, 7)
    return affine


def _cut(voxels: Any, affine: Any, region: Any, shape: Sequence[int], margin: int = 0) -> Crop:
    grid = OrganGrid(shape=list(shape), spacing=Spacing.native)
    return native_crop(voxels, affine, region, grid, margin, AIR)


def test_a_crop_is_a_window_of_the_scan_around_the_organ() -> None:
    crop = _cut(_numbered(), _oblique(), _region(), (8, 8, 8))
    assert crop.spacing_mm == pytest.approx(SPACING)
    # Along Z voxels are 4 times as thick: 8 / 4 = 2 of the organ's 3. In Y the window begins one voxel outside.
    expected = _numbered()[8:16, 0:8, 2:4]
    np.testing.assert_array_equal(crop.voxels, expected)
    assert crop.voxels.dtype == np.float32


def test_outside_the_scan_is_background_and_the_margin_is_in_its_own_voxels() -> None:
    crop = _cut(_numbered(), _oblique(), _region(), (8, 16, 16), margin=2)
    assert crop.voxels.shape == (12, 20, 8)
    inside = crop.voxels != AIR
    np.testing.assert_array_equal(crop.voxels[inside].reshape(12, 14, 6), _numbered()[6:18])
    x, y, z = (np.flatnonzero(inside.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1)))
    assert ((x[0], x[-1]), (y[0], y[-1]), (z[0], z[-1])) == ((0, 11), (6, 19), (1, 6))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_axis_order_and_flips_of_the_file_change_no_number(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    """48 ways to store one oblique scan. Oracle: nibabel writes the scan anew in each order, with its affine."""
    image_class: Any = nib.Nifti1Image
    image = image_class(_numbered(), _oblique())
    orientation = np.array(list(zip(axes, flips, strict=True)), dtype=np.float64)
    stored = image.as_reoriented(orientation)
    region = orientations.apply_orientation(_region(), orientation)
    crop = _cut(np.asarray(stored.dataobj), stored.affine, region, (8, 8, 8), margin=1)
    expected = _cut(_numbered(), _oblique(), _region(), (8, 8, 8), margin=1)
    np.testing.assert_array_equal(crop.voxels, expected.voxels)
    assert crop.spacing_mm == pytest.approx(expected.spacing_mm)
