"""The affine alone decides where a voxel lands: proved against the slow way, on every axis order, and on real heads."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from panfm.config import OrganGrid, PrepareConfig
from panfm.data import geometry
from panfm.data.manifest import ScanRow
from panfm.data.prepare import prepare_scan
from panfm.data.reading import read_label_map
from panfm.errors import DataError

Array = NDArray[np.float64]


def _turned(degrees: float, axis: int) -> Array:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.eye(4)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
    return turn


OBLIQUE = _turned(17, 0) @ _turned(-8, 2) @ np.diag([1.5, 2.0, 5.0, 1.0])
OBLIQUE[:3, 3] = (-20, 13, 41)


def _head(seed: int = 0) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).standard_normal((26, 22, 14))
    return ndimage.gaussian_filter(noise, 1.5).astype(np.float32)


def _reordered(
    voxels: NDArray[np.float32], affine: Array, order: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[NDArray[np.float32], Array]:
    """The same volume with other axis order and directions, its affine changed to match, written out index by index."""
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        change[old, new] = -1 if flips[new] else 1
        change[old, 3] = voxels.shape[old] - 1 if flips[new] else 0
    stored = voxels.transpose(order)[tuple(slice(None, None, -1 if flip else None) for flip in flips)]
    return np.ascontiguousarray(stored), affine @ change


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_all_48_axis_orders_give_one_volume(order: tuple[int, ...]) -> None:
    head = _head()
    region = head > 0.1
    centre = geometry.centre_of(region, OBLIQUE)
    grid = geometry.target_affine(centre, (12, 12, 12), (3.0, 4.0, 4.0))
    expected = geometry.resample(head, OBLIQUE, grid, (12, 12, 12), -3.0)
    assert expected.std() > 0.01
    for flips in itertools.product((False, True), repeat=3):
        stored, affine = _reordered(head, OBLIQUE, order, flips)
        np.testing.assert_allclose(geometry.centre_of(stored > 0.1, affine), centre, atol=1e-9)
        np.testing.assert_allclose(geometry.resample(stored, affine, grid, (12, 12, 12), -3.0), expected, atol=2e-6)


def test_real_head_in_eight_axis_orders(real_data: Path) -> None:
    grid, config = OrganGrid(shape=[32, 32, 32], spacing_mm=[6.0, 6.0, 6.0]), PrepareConfig()
    paths = sorted((real_data / "odd" / "niivue" / "orient").glob("*.nii.gz"))
    heads = [prepare_scan(ScanRow(subject="head", organ="brain", path=path), grid, config) for path in paths]
    assert len(heads) == 8
    for head in heads[1:]:
        np.testing.assert_allclose(head.astype(np.float32), heads[0].astype(np.float32), atol=5e-3)
    assert heads[0].astype(np.float32).std() > 0.5


def test_resample_equals_the_slow_way() -> None:
    """Whole-volume smoothing and one trilinear look-up per target voxel, no cropped block."""
    head, shape = _head(1), (9, 10, 11)
    grid = geometry.target_affine(geometry.to_world(np.array([[13.0, 10, 7]]), OBLIQUE)[0], shape, (2.5, 3.0, 4.0))
    steps = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    sigmas = []
    for axis in range(3):
        direction = OBLIQUE[:3, axis] / steps[axis]
        coarse = np.sqrt(sum((direction[k] * (2.5, 3.0, 4.0)[k]) ** 2 for k in range(3)))
        sigmas.append(np.sqrt(max(coarse**2 - steps[axis] ** 2, 0)) / 2.3548200450309493 / steps[axis])
    smooth = ndimage.gaussian_filter(head, sigmas, mode="nearest", truncate=3.0)
    targets = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 3).astype(float)
    places = np.linalg.solve(OBLIQUE, np.column_stack([geometry.to_world(targets, grid), np.ones(len(targets))]).T)[
        :3
    ].T
    slow = ndimage.map_coordinates(smooth, places.T, order=1, mode="grid-constant", cval=-3.0).reshape(shape)
    np.testing.assert_allclose(geometry.resample(head, OBLIQUE, grid, shape, -3.0), slow, atol=1e-5)


def test_a_linear_field_stays_where_it_is() -> None:
    """f(world) = x - 2y + 3z survives smoothing and resampling inside the scan, in millimetres."""
    indices = np.stack(np.meshgrid(*map(np.arange, (40, 36, 20)), indexing="ij"), -1).astype(float)
    world = geometry.to_world(indices.reshape(-1, 3), OBLIQUE)
    field = (world @ [1.0, -2.0, 3.0]).reshape(40, 36, 20).astype(np.float32)
    grid = geometry.target_affine(geometry.to_world(np.array([[20.0, 18, 10]]), OBLIQUE)[0], (6, 6, 6), (4.0, 4.0, 4.0))
    targets = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(float)
    expected = (geometry.to_world(targets, grid) @ [1.0, -2.0, 3.0]).reshape(6, 6, 6)
    np.testing.assert_allclose(geometry.resample(field, OBLIQUE, grid, (6, 6, 6), 0.0), expected, atol=1e-2)


def test_outside_the_scan_is_background() -> None:
    far = geometry.target_affine(np.array([1e4, 0, 0]), (4, 4, 4), (1.0, 1.0, 1.0))
    assert (geometry.resample(_head(), OBLIQUE, far, (4, 4, 4), -3.0) == -3.0).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.002, 0.5))
def test_world_bounds_equal_the_slow_way(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    region = generator.random((5, 7, 6)) < share
    region[tuple(generator.integers(0, 5, 3))] = True
    affine: Array = OBLIQUE + np.pad(generator.standard_normal((3, 4)), ((0, 1), (0, 0)))
    points = geometry.to_world(np.argwhere(region).astype(np.float64), affine)
    low, high = geometry.world_bounds(region, affine)
    np.testing.assert_allclose(low, points.min(axis=0))
    np.testing.assert_allclose(high, points.max(axis=0))
    box = np.zeros_like(region)
    box[geometry.bounding_box(region)] = True
    assert (box & region == region).all()
    assert [axis.size for axis in map(np.unique, np.nonzero(box))] == list(np.ptp(np.argwhere(region), axis=0) + 1)


def test_a_box_must_fit() -> None:
    assert geometry.box_region(((0, 2), (1, 3), (2, 4)), (4, 4, 4)).sum() == 8
    with pytest.raises(DataError, match=r"0:5 .* 4 x 4 x 4"):
        geometry.box_region(((0, 5), (0, 1), (0, 1)), (4, 4, 4))


def test_a_label_map_of_another_grid_is_carried_by_its_affine(real_data: Path) -> None:
    """The same heart mask is stored on the CT's grid and on a larger one: they must agree voxel for voxel."""
    folder = real_data / "abdomen_totalsegmentator" / "aorta_report"
    here = read_label_map(folder / "heart_on_ct_cropped_grid.nii.gz")
    there = read_label_map(folder / "heart_uncropped_grid.nii.gz")
    carried = geometry.region_on_grid(there.voxels > 0, there.affine, here.voxels.shape, here.affine)
    np.testing.assert_array_equal(carried, here.voxels > 0)


def test_a_label_map_of_another_place_is_refused() -> None:
    region, elsewhere = np.ones((4, 4, 4), dtype=np.bool_), np.eye(4)
    elsewhere[0, 3] = 100
    with pytest.raises(DataError, match="outside the scan"):
        geometry.region_on_grid(region, elsewhere, (4, 4, 4), np.eye(4))
