"""3D patches to tokens, one such module per organ; the same weight serves thin voxels and thick slices.

The kernel equals the stride, so the convolution is a matrix product over cut-out patches. A voxel that is t times as thick
as the finest stands for t taps of the kernel, so where voxels are thick the kernel is summed over groups of t consecutive
taps. That equals the whole kernel on the volume with each voxel repeated t times, at 1/t of the reading and multiplying.

Source: SPAD-conv of Luo et al. 2023 (SPAD-Nets), arXiv:2312.07630, for kernel = stride.
Legend: n scans, XYZ voxels, T patches, p voxels a side of a patch, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.layout import permute

Thickness: TypeAlias = tuple[int, int, int]
"""Taps of the kernel that a voxel stands for along X, Y, Z; each divides the patch."""

THIN: Thickness = (1, 1, 1)


class ScanBlock(Protocol):
    """Scans of one organ whose voxels are equally thick."""

    @property
    def volumes(self) -> Tensor:
        """[n, X, Y, Z]: the organ's grid divided by `thickness`."""

    @property
    def thickness(self) -> Thickness:
        """Taps that a voxel stands for."""

    @property
    def positions(self) -> Tensor:
        """int64 [n]: which of the organ's scans these are."""


class ScanBlocks(Protocol):
    """Scans of one organ with voxels of several thicknesses; the positions of all blocks are 0 .. n-1, each once."""

    @property
    def blocks(self) -> Sequence[ScanBlock]:
        """One block for each thickness."""


Volumes: TypeAlias = Tensor | ScanBlocks
"""Scans of one organ: [n, X, Y, Z] on its grid, or blocks of scans in their own voxels."""


def cut_patches(volumes: Tensor, patch: int, thickness: Thickness = THIN) -> Tensor:
    """Cut volumes into blocks of patch / thickness voxels.

    Args:
        volumes: [n, X, Y, Z], each side a multiple of patch / thickness.
    Returns: [n, T, voxels of a block]; patches and the voxels within one in XYZ order, last axis fastest.
    """
    n, x, y, z = volumes.shape
    i, j, k = (patch // thick for thick in thickness)
    blocks = volumes.reshape(n, x // i, i, y // j, j, z // k, k)
    return blocks.permute(0, 1, 3, 5, 2, 4, 6).reshape(n, -1, i * j * k)


def thick_kernel(weight: Tensor, thickness: Thickness) -> Tensor:
    """The kernel for thick voxels: [E, 1, p, p, p] with groups of `thickness` consecutive taps summed."""
    for axis, thick in enumerate(thickness, start=2):
        if thick > 1:
            sides = weight.shape
            weight = weight.reshape(*sides[:axis], -1, thick, *sides[axis + 1 :]).sum(axis + 1)
    return weight


class PatchEmbed(nn.Module):
    """A linear map of each cube of voxels to a token; weight [E, 1, p, p, p], bias [E]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, 1, patch, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, volumes: Volumes) -> Tensor:
        """[n, X, Y, Z], or blocks of n scans together, to [n, T, E]."""
        if isinstance(volumes, Tensor):
            return self._tokens(volumes, THIN)
        positions = torch.cat([block.positions for block in volumes.blocks])
        tokens = torch.cat([self._tokens(block.volumes, block.thickness) for block in volumes.blocks])
        return permute(tokens, positions.argsort(), positions)

    def _tokens(self, volumes: Tensor, thickness: Thickness) -> Tensor:
        kernel = thick_kernel(self.weight, thickness).flatten(1)
        return functional.linear(cut_patches(volumes, self.patch, thickness), kernel, self.bias)
