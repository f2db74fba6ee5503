"""Blur is scipy's, the bias field its formula written voxel by voxel, gamma a power between air and the brightest voxel."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from panfm.data.augment_intensity import BIAS_WAVES, add_bias, bias_field, blur, gamma
from panfm.data.intensity import BACKGROUND


def _volumes(count: int = 2, shape: tuple[int, int, int] = (9, 7, 8)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32))


@given(sigmas=st.tuples(*[st.sampled_from([0.0, 0.4, 0.9, 1.7, 3.0])] * 3))
def test_blur_is_scipys_with_kernels_of_three_sigma(sigmas: tuple[float, float, float]) -> None:
    volumes = _volumes()
    blurred = blur(volumes, torch.tensor([[0.5, 2.0, 0.0], sigmas]))
    wanted = volumes[1].numpy().astype(np.float64)
    for axis, sigma in enumerate(sigmas):
        wanted = (
            ndimage.gaussian_filter1d(wanted, sigma, axis, mode="nearest", radius=math.ceil(3 * sigma))
            if sigma
            else wanted
        )
    np.testing.assert_allclose(blurred[1].numpy(), wanted, atol=2e-6)


def test_blur_of_one_does_not_depend_on_the_others_to_the_bit() -> None:
    volumes, sigmas = _volumes(3), torch.tensor([[0.5, 0.7, 0.0], [0.0, 0.0, 0.0], [3.0, 2.0, 1.0]])
    together = blur(volumes, sigmas)
    for place in range(3):
        assert torch.equal(together[place], blur(volumes[place : place + 1], sigmas[place : place + 1])[0])
    assert torch.equal(together[1], volumes[1])


def test_the_bias_field_by_its_formula() -> None:
    assert len(BIAS_WAVES) == 9
    coefficients = np.random.default_rng(1).uniform(-0.5, 0.5, (2, 9))
    found = bias_field((4, 3, 5), torch.from_numpy(coefficients)).numpy()
    for place, x, y, z in np.ndindex(2, 4, 3, 5):
        exponent = sum(
            c
            * math.cos(math.pi * a * (x + 0.5) / 4)
            * math.cos(math.pi * b * (y + 0.5) / 3)
            * math.cos(math.pi * d * (z + 0.5) / 5)
            for c, (a, b, d) in zip(coefficients[place], BIAS_WAVES, strict=True)
        )
        assert found[place, x, y, z] == pytest.approx(math.exp(exponent), rel=1e-6)


def test_bias_multiplies_what_stands_above_the_background() -> None:
    volumes = torch.full((1, 4, 4, 4), BACKGROUND)
    volumes[0, 1:3] = 2.0
    coefficients = torch.full((1, 9), 0.3)
    changed = add_bias(volumes, coefficients)
    field = bias_field((4, 4, 4), coefficients)
    assert torch.equal(changed[volumes == BACKGROUND], volumes[volumes == BACKGROUND])
    torch.testing.assert_close(changed[0, 1:3] - BACKGROUND, 5.0 * field[0, 1:3])


def test_gamma_is_a_power_between_air_and_the_brightest_voxel() -> None:
    volume = torch.tensor([BACKGROUND, BACKGROUND + 1, BACKGROUND + 2, BACKGROUND + 4]).reshape(1, 1, 1, 4)
    changed = gamma(volume, torch.tensor([2.0])) - BACKGROUND
    torch.testing.assert_close(changed.flatten(), torch.tensor([0.0, 0.25, 1.0, 4.0]))


def test_gamma_of_empty_air_is_empty_air() -> None:
    air = torch.full((1, 3, 3, 3), BACKGROUND)
    assert torch.equal(gamma(air, torch.tensor([0.5])), air)
