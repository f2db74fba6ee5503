"""Batches of crops of several shapes: every scan once, in its place, whatever is chosen, moved or changed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch

from panfm.config import OrganGrid, Spacing
from panfm.data.native import Crop, crop_shape
from panfm.data.native_batch import NativeBlock, collate_native, on_grid, repeat_voxels


def _crops() -> list[Crop]:
    spacings = [(1.0, 1.0, 1.0), (1.0, 1.0, 8.0), (1.2, 1.2, 1.2), (8.0, 1.0, 1.0), (1.5, 1.5, 12.5)]
    grid = OrganGrid(shape=[8, 8, 16], spacing=Spacing.native)
    return [
        Crop(np.random.default_rng(i).standard_normal(crop_shape(grid, s)).astype(np.float32), s)
        for i, s in enumerate(spacings)
    ]


def test_blocks_hold_every_scan_once_with_its_place_and_spacing() -> None:
    crops = _crops()
    volumes = collate_native(crops, max_degree=3)
    assert len(volumes) == 5
    assert [(b.thickness, b.positions.tolist()) for b in volumes.blocks] == [
        ((1, 1, 1), [0, 2]),
        ((1, 1, 8), [1, 4]),
        ((8, 1, 1), [3]),
    ]
    for block in volumes.blocks:
        for row, position in enumerate(block.positions.tolist()):
            assert torch.equal(block.volumes[row], torch.from_numpy(crops[position].voxels))
            assert block.spacing_mm[row].tolist() == list(crops[position].spacing_mm)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [1, 4], [3, 0], [4, 2, 0], [2]])
def test_selection_equals_a_batch_of_the_chosen(chosen: list[int]) -> None:
    crops = _crops()
    selected = collate_native(crops, 3)[torch.tensor(chosen)]
    wanted = collate_native([crops[i] for i in chosen], 3)
    assert len(selected) == len(chosen)
    assert torch.equal(selected.repeated(), wanted.repeated())
    assert torch.equal(selected.repeated_spacing_mm(), wanted.repeated_spacing_mm())
    assert {b.thickness for b in selected.blocks} == {b.thickness for b in wanted.blocks}


def test_repeated_voxels_fill_the_grid_and_keep_the_extent() -> None:
    crops = _crops()
    volumes = collate_native(crops, 3)
    whole, spacing = volumes.repeated(), volumes.repeated_spacing_mm()
    assert whole.shape == (5, 8, 8, 16)
    assert torch.equal(whole[1], torch.from_numpy(np.repeat(crops[1].voxels, 8, axis=2)))
    assert torch.equal(whole[3], torch.from_numpy(np.repeat(crops[3].voxels, 8, axis=0)))
    assert spacing[4].tolist() == [1.5, 1.5, 12.5 / 8]
    extent = torch.tensor([c.voxels.shape for c in crops]) * torch.tensor([c.spacing_mm for c in crops])
    assert torch.allclose(spacing * torch.tensor([8, 8, 16]), extent.double(), rtol=1e-6)


def test_repeating_by_one_changes_nothing() -> None:
    volumes = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(repeat_voxels(volumes, (1, 1, 1)), volumes)
    assert repeat_voxels(volumes, (2, 1, 4)).shape == (2, 6, 4, 20)


def test_changed_volumes_keep_their_places() -> None:
    volumes = collate_native(_crops(), 3)
    seen: list[NativeBlock] = []

    def doubled(block: NativeBlock) -> torch.Tensor:
        seen.append(block)
        return 2 * block.volumes

    changed = volumes.changed(doubled)
    assert seen == list(volumes.blocks)
    assert torch.equal(changed.repeated(), 2 * volumes.repeated())
    assert torch.equal(changed.repeated_spacing_mm(), volumes.repeated_spacing_mm())
    assert changed.to("cpu").device.type == "cpu"


def test_a_resampled_organ_is_on_its_grid_already() -> None:
    plain = torch.zeros(2, 8, 8, 16)
    assert on_grid(plain) is plain
    assert on_grid(collate_native(_crops(), 3)).shape == (5, 8, 8, 16)
