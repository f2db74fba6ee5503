"""Targets and error of pixel reconstruction by loops over patches and voxels, of thin voxels and of thick ones."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from panfm.data.native_batch import NativeBlock, NativeVolumes
from panfm.pretrain.pixel_loss import pixel_loss, pixel_targets


def _by_loops(volume: np.ndarray, patch: int) -> list[list[float]]:
    """Patches and voxels in XYZ order, each patch less its mean, over the root of its variance."""
    corners = itertools.product(*(range(0, side, patch) for side in volume.shape))
    found = []
    for x, y, z in corners:
        cube = volume[x : x + patch, y : y + patch, z : z + patch].astype(np.float64).ravel()
        found.append(((cube - cube.mean()) / np.sqrt(cube.var() + 1e-6)).tolist())
    return found


def test_targets_by_loops() -> None:
    volumes = np.random.default_rng(0).normal(3.0, 2.0, (2, 8, 4, 12)).astype(np.float32)
    found = pixel_targets(torch.from_numpy(volumes), 4)
    assert found.shape == (2, 6, 64)
    for row in range(2):
        assert found[row].tolist() == [pytest.approx(patch, abs=1e-4) for patch in _by_loops(volumes[row], 4)]


def test_a_patch_without_contrast_has_a_target_of_zero_and_others_a_loss_of_1_for_their_mean() -> None:
    volumes = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    volumes[..., 4:] = 7.0
    targets = pixel_targets(volumes, 4)
    assert not targets[0, 1].any()
    assert pixel_loss(torch.zeros_like(targets), targets)[0].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_the_error_by_loops() -> None:
    draws = np.random.default_rng(1)
    predicted, target = draws.normal(size=(3, 8)), draws.normal(size=(3, 8))
    expected = [
        sum((p - t) ** 2 for p, t in zip(*rows, strict=True)) / 8 for rows in zip(predicted, target, strict=True)
    ]
    found = pixel_loss(torch.from_numpy(predicted).float(), torch.from_numpy(target).float())
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_thick_voxel_counts_as_the_voxels_that_it_stands_for() -> None:
    thin = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    slices = torch.randn(1, 8, 8, 2, generator=torch.Generator().manual_seed(1))
    blocks = (_block(slices, (1, 1, 4), 0), _block(thin, (1, 1, 1), 1))
    found = pixel_targets(NativeVolumes(blocks), 4)
    expected = torch.cat((pixel_targets(slices.repeat_interleave(4, dim=3), 4), pixel_targets(thin, 4)))
    assert torch.equal(found, expected)


def _block(volumes: torch.Tensor, thickness: tuple[int, int, int], position: int) -> NativeBlock:
    spacing = torch.ones(1, 3, dtype=torch.float64)
    return NativeBlock(volumes=volumes, thickness=thickness, positions=torch.tensor([position]), spacing_mm=spacing)
