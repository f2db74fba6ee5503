"""Pixel reconstruction: mean squared error to the voxels of hidden patches, each patch normalised by itself.

Voxels are those of the crop as it is, which the teacher is shown; the student encodes visible patches of the augmented crop.
Nothing of one subject enters another's loss.
Source: He et al. 2022 (MAE), arXiv:2111.06377, section 3 and "reconstruction target". Deviation: a patch's variance is that
of its voxels themselves (divided by their number, not by one less), so that a guess of its mean has a loss of 1.
Legend: n scans, XYZ voxels, T patches, p voxels a side.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor

from panfm.data.native_batch import NativeVolumes, on_grid
from panfm.models.patch_embed import cut_patches

LEAST_VARIANCE = 1e-6
"""Added to a patch's variance, as in MAE: patches of background have none."""


@torch.no_grad()
def pixel_targets(volumes: Tensor | NativeVolumes, patch: int) -> Tensor:
    """Each patch's voxels with mean 0 and variance 1, fp32 [n, T, p * p * p].

    Args:
        volumes: [n, X, Y, Z], or scans in their own voxels: a thick voxel stands for several, all of its value.
    """
    voxels = cut_patches(on_grid(volumes).float(), patch)
    variance, mean = torch.var_mean(voxels, dim=-1, keepdim=True, correction=0)
    return (voxels - mean) / (variance + LEAST_VARIANCE).sqrt()


def pixel_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the voxels of each patch, [..., p * p * p] to fp32 [...]."""
    return (predicted.float() - target).square().mean(-1)
