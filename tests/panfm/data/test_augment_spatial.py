"""Voxels go where rotations, zooms and shifts of the body send them, by numpy's and scipy's own hand."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from panfm.data.augment_spatial import affine_matrices, flip, warp
from panfm.data.intensity import BACKGROUND

STILL = torch.zeros(1, 3)
ONE = torch.ones(1)
CUBES = torch.ones(1, 3)


def _volume(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((1, *shape)).astype(np.float32))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("turns", [-1, 1, 2, 4])
def test_quarter_turns_are_rot90(axis: int, turns: int) -> None:
    """numpy turns the first of two axes towards the second: counter-clockwise seen from the third one's positive end."""
    volume = _volume(7, 7, 7)
    angles = torch.zeros(1, 3)
    angles[0, axis] = 90.0 * turns
    turned = warp(volume, affine_matrices(angles, ONE, CUBES), STILL)
    plane = ((axis + 1) % 3 + 1, (axis + 2) % 3 + 1)
    torch.testing.assert_close(turned, torch.rot90(volume, turns, plane), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(9, 9, 9), (10, 8, 12), (6, 5, 1)])
def test_identity_leaves_every_voxel_where_it_is(shape: tuple[int, int, int]) -> None:
    volume = _volume(*shape)
    same = warp(volume, affine_matrices(STILL, ONE, torch.tensor([[1.0, 2.0, 5.0]])), STILL)
    torch.testing.assert_close(same, volume, atol=1e-5, rtol=0)


def test_whole_steps_move_the_content_and_background_follows() -> None:
    volume = _volume(6, 7, 8)
    there = warp(volume, affine_matrices(STILL, ONE, CUBES), torch.tensor([[2.0, -1.0, 0.0]]))
    torch.testing.assert_close(there[0, 2:, :-1], volume[0, :-2, 1:], atol=1e-5, rtol=0)
    assert torch.equal(there[0, :2], torch.full((2, 7, 8), BACKGROUND))
    assert torch.equal(there[0, :, -1], torch.full((6, 8), BACKGROUND))


@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    zoom=st.floats(0.6, 1.5),
    spacing=st.tuples(*[st.floats(0.5, 8)] * 3),
    shift=st.tuples(*[st.floats(-2, 2)] * 3),
)
def test_a_turn_of_the_body_by_scipy(
    angles: tuple[float, ...], zoom: float, spacing: tuple[float, ...], shift: tuple[float, ...]
) -> None:
    """scipy resamples with the same law written in millimetres: x_in = S^-1 (zoom R)^-1 S (x_out - shift).

    Voxels near the rim are left out: there torch fades into the background over one voxel and scipy does not.
    """
    volume = torch.zeros(1, 12, 14, 10)
    volume[:, 3:9, 4:10, 3:7] = _volume(6, 6, 4)
    volume += BACKGROUND
    matrix = affine_matrices(torch.tensor([angles]), torch.tensor([zoom]), torch.tensor([spacing]))
    found = warp(volume, matrix, torch.tensor([shift]))[0].numpy()
    steps = np.diag(spacing)
    turn = np.linalg.inv(zoom * Rotation.from_euler("xyz", angles, degrees=True).as_matrix())
    pull = np.linalg.inv(steps) @ turn @ steps
    middle = (np.array(volume.shape[1:]) - 1) / 2
    offset = middle - pull @ (middle + shift)
    wanted = ndimage.affine_transform(volume[0].numpy(), pull, offset, order=1, mode="grid-constant", cval=BACKGROUND)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_each_volume_has_its_own_turn() -> None:
    volumes = torch.cat([_volume(7, 7, 7), _volume(7, 7, 7, seed=1)])
    angles = torch.tensor([[0.0, 0.0, 90.0], [20.0, -10.0, 5.0]])
    matrices = affine_matrices(angles, torch.tensor([1.0, 1.1]), torch.ones(2, 3))
    shifts = torch.tensor([[0.0, 1.0, 0.0], [0.5, 0.0, 0.0]])
    together = warp(volumes, matrices, shifts)
    for place in range(2):
        alone = warp(volumes[place : place + 1], matrices[place : place + 1], shifts[place : place + 1])
        torch.testing.assert_close(together[place], alone[0], atol=1e-6, rtol=0)


@given(flips=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_flips_are_numpys(flips: list[tuple[bool, bool, bool]]) -> None:
    volumes = torch.cat([_volume(3, 4, 5, seed=place) for place in range(len(flips))])
    before = volumes.clone()
    mirrored = flip(volumes, torch.tensor(flips))
    for volume, axes, found in zip(volumes, flips, mirrored, strict=True):
        wanted = np.flip(volume.numpy(), tuple(axis for axis, there in enumerate(axes) if there))
        assert np.array_equal(found.numpy(), wanted)
    assert torch.equal(volumes, before)
