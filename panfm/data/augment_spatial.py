"""Where voxels go: rotation, zoom, translation and flips of volumes, as functions of numbers that were drawn elsewhere.

Angles and lengths are of the body, so a grid of unequal spacing turns it rigidly and does not shear it.
Legend: n volumes, XYZ voxel axes (RAS+).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panfm.data.intensity import BACKGROUND


def affine_matrices(angles_deg: Tensor, zoom: Tensor, spacing_mm: Tensor) -> Tensor:
    """For each volume, where an output voxel looks: voxel offsets from its middle to voxel offsets in the input.

    Args:
        angles_deg: [n, 3], counter-clockwise about X, then Y, then Z, seen from the axis' positive end.
        zoom: [n], above 1 enlarges.
        spacing_mm: [n, 3].
    Returns: float64 [n, 3, 3].
    """
    x, y, z = (_rotations(angles_deg[:, axis].double().deg2rad(), axis) for axis in range(3))
    there_mm = (z @ y @ x) * zoom.double()[:, None, None]
    back_mm = torch.linalg.inv(there_mm)
    steps = spacing_mm.double()
    matrices: Tensor = back_mm * steps[:, None, :] / steps[:, :, None]
    return matrices


def _rotations(angles: Tensor, axis: int) -> Tensor:
    """Rotation matrices [n, 3, 3] about one axis."""
    matrices = torch.eye(3, dtype=torch.float64).repeat(len(angles), 1, 1)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrices[:, first, first] = matrices[:, second, second] = angles.cos()
    matrices[:, second, first] = angles.sin()
    matrices[:, first, second] = -angles.sin()
    return matrices


def warp(volumes: Tensor, matrices: Tensor, translations_voxels: Tensor) -> Tensor:
    """Each volume turned, zoomed and moved about its middle, linearly interpolated; `BACKGROUND` comes in from outside.

    Args:
        volumes: [n, X, Y, Z], float.
        matrices: of `affine_matrices`, on any device.
        translations_voxels: [n, 3], how far the content moves.
    """
    half = torch.tensor(volumes.shape[1:], dtype=torch.float64) / 2
    # torch counts axes backwards, and from -1 to 1 between the outer faces of the first and the last voxel.
    linear = (matrices.cpu() * half[None, None, :] / half[None, :, None]).flip(1, 2)
    shift = ((matrices.cpu() @ -translations_voxels.cpu().double()[:, :, None])[:, :, 0] / half).flip(1)
    theta = torch.cat((linear, shift[:, :, None]), dim=2).to(volumes)
    places = functional.affine_grid(theta, [len(volumes), 1, *volumes.shape[1:]], align_corners=False)
    above = (volumes - BACKGROUND).unsqueeze(1)  # what grid_sample finds outside is 0
    return functional.grid_sample(above, places, padding_mode="zeros", align_corners=False)[:, 0] + BACKGROUND


def flip(volumes: Tensor, flips: Tensor) -> Tensor:
    """Each volume mirrored along its own axes.

    Args:
        volumes: [n, X, Y, Z].
        flips: bool [n, 3], which axes.
    """
    for axis in range(3):
        mirrored = flips[:, axis].to(volumes.device)[:, None, None, None]
        volumes = torch.where(mirrored, volumes.flip(axis + 1), volumes)
    return volumes
