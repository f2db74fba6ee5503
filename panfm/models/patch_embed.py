"""3D patches to tokens, one such module per organ.

The kernel equals the stride, so the convolution is a matrix product over cut-out patches; the weight keeps the shape of a
3D convolution so that it can be summed along depth for thick slices.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def cut_patches(volumes: Tensor, patch: int) -> Tensor:
    """Cut volumes into cubes.

    Args:
        volumes: [n, X, Y, Z], each side a multiple of patch.
    Returns: [n, T, patch**3]; patches and the voxels within one in XYZ order, last axis fastest.
    """
    n, x, y, z = volumes.shape
    cubes = volumes.reshape(n, x // patch, patch, y // patch, patch, z // patch, patch)
    return cubes.permute(0, 1, 3, 5, 2, 4, 6).reshape(n, -1, patch**3)


class PatchEmbed(nn.Module):
    """A linear map of each cube of voxels to a token; weight [E, 1, p, p, p], bias [E]."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.weight = nn.Parameter(torch.empty(width, 1, patch, patch, patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, volumes: Tensor) -> Tensor:
        """[n, X, Y, Z] to [n, T, E]."""
        return functional.linear(cut_patches(volumes, self.patch), self.weight.flatten(1), self.bias)
