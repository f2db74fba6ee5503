"""3D rotary positions: attention depends on where patches lie relative to each other, at no parameter.

The angle pairs of a head are dealt to the axes in turn; the pairs of one axis turn by position * base**(-j/n), j = 0 .. n-1.
Organ tokens and the subject token have no place and are not turned. Axes use disjoint pairs, so two different integer
positions can only collide where every axis does. Source: Su et al. 2021, arXiv:2104.09864, axial form as in DINOv3.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor

BASE = 100.0
"""Small, as grids have 4 to 16 patches a side: the slowest pair turns by about 0.1 rad across one."""


def grid_positions(counts: tuple[int, int, int]) -> Tensor:
    """Integer positions of an organ's patches, fp32 [T, 3], in the order of `cut_patches`."""
    axes = torch.meshgrid(*(torch.arange(count, dtype=torch.float32, device="cpu") for count in counts), indexing="ij")
    return torch.stack(axes, dim=-1).reshape(-1, 3)


def rotary_angles(positions: Tensor, head_size: int) -> Tensor:
    """Angles of each pair of a head.

    Args:
        positions: fp32 [T, 3], patch units.
        head_size: even.
    Returns: fp32 [T, head_size / 2].
    """
    pairs = head_size // 2
    axis = torch.arange(pairs, device="cpu") % 3
    rank = torch.arange(pairs, device="cpu") // 3
    per_axis = torch.bincount(axis, minlength=3)[axis]
    frequency = BASE ** (-rank.float() / per_axis.float())
    return positions[:, axis] * frequency


def rotate(features: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of each head.

    Args:
        features: [N, H, D].
        cosine, sine: [N, D/2], broadcast over heads.
    """
    first, second = features.chunk(2, dim=-1)
    cosine, sine = cosine.unsqueeze(1).to(features.dtype), sine.unsqueeze(1).to(features.dtype)
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
