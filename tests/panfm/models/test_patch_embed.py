"""The patch embedding is a 3D convolution whose kernel is its stride; for thick voxels, the same kernel in groups."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.patch_embed import PatchEmbed, cut_patches, thick_kernel

PATCH = 8
GRID = (16, 8, 24)
THICK = [
    *[tuple(t if axis == thick_axis else 1 for axis in range(3)) for thick_axis in range(3) for t in (1, 2, 4, 8)],
    (1, 2, 4),
    (8, 1, 2),
]
"""Degrees 0 to 3 along each axis, and two axes thick at once."""


@dataclass(frozen=True)
class Block:
    volumes: Tensor
    thickness: tuple[int, int, int]
    positions: Tensor


@dataclass(frozen=True)
class Blocks:
    blocks: Sequence[Block]


def _embed(dtype: torch.dtype = torch.float32) -> PatchEmbed:
    noise = torch.Generator().manual_seed(0)
    embed = PatchEmbed(width=6, patch=PATCH).to(dtype)
    with torch.no_grad():
        for parameter in embed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64) / PATCH**1.5)
    return embed


def _block(thickness: tuple[int, int, int], positions: Sequence[int], dtype: torch.dtype = torch.float32) -> Block:
    shape = [side // thick for side, thick in zip(GRID, thickness, strict=True)]
    seeds = [torch.Generator().manual_seed(100 + position) for position in positions]
    volumes = torch.stack([torch.randn(shape, generator=seed, dtype=torch.float64) for seed in seeds])
    return Block(volumes.to(dtype), thickness, torch.tensor(positions))


def _repeated(block: Block) -> Tensor:
    """Each voxel as often as it is thick."""
    volumes = block.volumes
    for axis, thick in enumerate(block.thickness, start=1):
        index = torch.arange(volumes.shape[axis] * thick) // thick
        volumes = volumes.index_select(axis, index)
    return volumes


def test_patches_are_cut_in_xyz_order() -> None:
    volumes = torch.arange(2 * 4 * 6 * 2.0).reshape(2, 4, 6, 2)
    corners = [(x, y, z) for x in (0, 2) for y in (0, 2, 4) for z in (0,)]
    patches = cut_patches(volumes, 2)
    assert patches.shape == (2, 6, 8)
    for number, (x, y, z) in enumerate(corners):
        assert torch.equal(patches[:, number], volumes[:, x : x + 2, y : y + 2, z : z + 2].reshape(2, -1))


def test_embedding_equals_a_strided_convolution() -> None:
    torch_generator = torch.Generator().manual_seed(0)
    embed = PatchEmbed(width=5, patch=4)
    with torch.no_grad():
        nn.init.normal_(embed.weight, generator=torch_generator)
        nn.init.normal_(embed.bias, generator=torch_generator)
    volumes = torch.randn(3, 8, 4, 12, generator=torch_generator)
    expected = functional.conv3d(volumes.unsqueeze(1), embed.weight, embed.bias, stride=4).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(volumes), expected, atol=1e-5)


@pytest.mark.parametrize("thickness", THICK)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_thick_voxels_give_what_the_whole_kernel_gives_on_repeated_ones(
    thickness: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    """Exactness: the oracle is torch's own convolution with the whole kernel, on the volume repeated along its thick axes."""
    embed, block = _embed(dtype), _block(thickness, [0, 1], dtype)
    repeated = _repeated(block)
    assert repeated.shape[1:] == GRID
    expected = (
        functional.conv3d(repeated.unsqueeze(1), embed.weight, embed.bias, stride=PATCH).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(embed(Blocks([block])), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("thickness", THICK)
def test_a_kernel_for_thick_voxels_is_the_sum_of_its_taps(thickness: tuple[int, int, int]) -> None:
    weight = _embed(torch.float64).weight
    kernel = thick_kernel(weight, thickness)
    x, y, z = thickness
    assert kernel.shape == (6, 1, PATCH // x, PATCH // y, PATCH // z)
    for i, j, k in ((0, 0, 0), (PATCH // x - 1, PATCH // y - 1, PATCH // z - 1)):
        taps = weight[:, :, i * x : (i + 1) * x, j * y : (j + 1) * y, k * z : (k + 1) * z]
        torch.testing.assert_close(kernel[:, :, i, j, k], taps.sum((2, 3, 4)), rtol=0, atol=1e-12)


def test_thin_voxels_take_the_path_that_they_always_took() -> None:
    embed, block = _embed(), _block((1, 1, 1), [0, 1, 2])
    assert torch.equal(embed(Blocks([block])), embed(block.volumes))


def test_scans_of_all_thicknesses_in_one_batch_give_what_each_gives_alone() -> None:
    embed = _embed()
    blocks = [_block((1, 1, 1), [1, 4]), _block((1, 1, 8), [0]), _block((4, 1, 1), [5, 2]), _block((1, 2, 1), [3])]
    together = embed(Blocks(blocks))
    assert together.shape == (6, 2 * 1 * 3, 6)
    for block in blocks:
        for row, position in enumerate(block.positions.tolist()):
            alone = Block(block.volumes[row : row + 1], block.thickness, torch.tensor([0]))
            torch.testing.assert_close(together[position], embed(Blocks([alone]))[0], rtol=0, atol=1e-6)


def test_thin_and_thick_scans_teach_one_weight() -> None:
    """The gradient of a mixed batch is the sum of the gradients of its scans, and neither kind gives none."""
    blocks = [_block((1, 1, 1), [1], torch.float64), _block((1, 1, 8), [0], torch.float64)]

    def gradient(chosen: Sequence[Block]) -> Tensor:
        embed = _embed(torch.float64)
        positions = [Block(b.volumes, b.thickness, torch.tensor([i])) for i, b in enumerate(chosen)]
        torch.autograd.backward(embed(Blocks(positions)).square().sum())
        assert embed.weight.grad is not None
        return embed.weight.grad

    thin, thick = gradient(blocks[:1]), gradient(blocks[1:])
    assert min(float(thin.abs().max()), float(thick.abs().max())) > 1e-3
    torch.testing.assert_close(gradient(blocks), thin + thick, rtol=0, atol=1e-10)
    # A thick voxel tells the taps that it stands for the same.
    assert torch.equal(thick[..., :1].expand_as(thick), thick)
