"""What voxels say: blur, bias field and gamma of volumes, as functions of numbers that were drawn elsewhere.

Bias field and gamma work on what stands above the background, as on a scanner's own numbers, so that air stays air. Each
is element by element, so that a volume's bits do not depend on the others in the batch.
Legend: n volumes, XYZ voxel axes (RAS+).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

from panfm.data.intensity import BACKGROUND

BIAS_WAVES: tuple[tuple[int, int, int], ...] = tuple(
    (a, b, c) for a, b, c in itertools.product(range(3), repeat=3) if 1 <= a + b + c <= 2
)
"""Half waves along X, Y, Z of the nine cosines that make a bias field: a coil's falloff is that smooth."""

_REACH = 3.0
"""Gaussian kernels end after this many sigma: 0.3 % of the weight lies beyond."""


def blur(volumes: Tensor, sigmas_voxels: Tensor) -> Tensor:
    """Each volume smoothed by its own Gaussian; the border is repeated outwards.

    Args:
        volumes: [n, X, Y, Z].
        sigmas_voxels: [n, 3], along each axis; 0 leaves it as it is.
    """
    for axis in range(3):
        sigmas = sigmas_voxels[:, axis].cpu().double()
        reach = math.ceil(_REACH * float(sigmas.max()))
        if reach > 0:
            volumes = _smoothed(volumes, _kernels(sigmas, reach).to(volumes), axis, reach)
    return volumes


def _kernels(sigmas: Tensor, reach: int) -> Tensor:
    """Weights [n, 2 reach + 1], float64; each row's own kernel ends where it would end alone."""
    taps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / sigmas.clamp(min=1e-6)[:, None]) ** 2)
    weights = weights * (taps.abs() <= torch.ceil(_REACH * sigmas)[:, None])
    return weights / weights.sum(dim=1, keepdim=True)


def _smoothed(volumes: Tensor, kernels: Tensor, axis: int, reach: int) -> Tensor:
    margin = [0] * 6
    margin[4 - 2 * axis] = margin[5 - 2 * axis] = reach  # torch names the last axis first
    padded = functional.pad(volumes, margin, mode="replicate")
    side = volumes.shape[axis + 1]
    smooth = torch.zeros_like(volumes)
    for tap in range(kernels.shape[1]):
        smooth += kernels[:, tap, None, None, None] * padded.narrow(axis + 1, tap, side)
    return smooth


def bias_field(shape_XYZ: tuple[int, int, int], coefficients: Tensor) -> Tensor:
    """A smooth factor for each voxel: exp(sum over w of c_w cos(pi w_x x) cos(pi w_y y) cos(pi w_z z)), x, y, z in 0 to 1.

    Args:
        shape_XYZ: the volumes' shape.
        coefficients: [n, 9], one for each of `BIAS_WAVES`.
    Returns: [n, X, Y, Z], of the coefficients' type and on their device; 1 where all coefficients are 0.
    """
    waves = torch.arange(3, device=coefficients.device)[:, None]
    x, y, z = (
        torch.cos(math.pi * waves * (torch.arange(side, device=coefficients.device) + 0.5) / side).to(coefficients)
        for side in shape_XYZ
    )
    exponent = coefficients.new_zeros(len(coefficients), *shape_XYZ)
    for place, (a, b, c) in enumerate(BIAS_WAVES):
        wave = x[a][:, None, None] * y[b][None, :, None] * z[c][None, None, :]
        exponent += coefficients[:, place, None, None, None] * wave
    return exponent.exp()


def add_bias(volumes: Tensor, coefficients: Tensor) -> Tensor:
    """Each volume [n, X, Y, Z] with its height above the background multiplied by its own bias field."""
    _, x, y, z = volumes.shape
    return (volumes - BACKGROUND) * bias_field((x, y, z), coefficients.to(volumes)) + BACKGROUND


def gamma(volumes: Tensor, exponents: Tensor) -> Tensor:
    """Each volume's height above the background, as a share of its greatest, raised to its own exponent.

    Args:
        volumes: [n, X, Y, Z].
        exponents: [n], above 0; below 1 brightens what is dark.
    """
    heights = (volumes - BACKGROUND).clamp(min=0)
    tallest = heights.amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(volumes.dtype).tiny)
    return tallest * (heights / tallest) ** exponents.to(volumes)[:, None, None, None] + BACKGROUND
