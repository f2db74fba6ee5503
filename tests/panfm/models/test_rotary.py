"""Positions enter attention as differences only, lengthen nothing, and no two of them look alike."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import cmath
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.models.rotary import BASE, grid_positions, rotary_angles, rotate

HEAD_SIZES = (6, 8, 12, 24, 64)
places = st.tuples(*[st.integers(0, 15)] * 3)


def _turned(features: Tensor, place: tuple[int, ...]) -> Tensor:
    """One head's features [D] at a place."""
    angles = rotary_angles(torch.tensor([place], dtype=torch.float32), len(features))
    return rotate(features.reshape(1, 1, -1), angles.cos().double(), angles.sin().double()).flatten()


def test_grid_positions_count_like_nested_loops() -> None:
    expected = [[x, y, z] for x in range(2) for y in range(3) for z in range(4)]
    assert grid_positions((2, 3, 4)).tolist() == expected


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_rotation_is_the_product_with_complex_units(head_size: int) -> None:
    """The slow way: pair i of the axis i % 3 is the complex number f_i + 1j * f_(i + D/2), turned by p * base**(-j/n)."""
    features = torch.linspace(-1, 2, head_size, dtype=torch.float64)
    place, pairs = (3, 1, 14), head_size // 2
    turned = _turned(features, place)
    for i in range(pairs):
        on_axis = len(range(i % 3, pairs, 3))
        angle = place[i % 3] * BASE ** (-(i // 3) / on_axis)
        expected = complex(features[i], features[i + pairs]) * cmath.exp(1j * angle)
        assert complex(turned[i], turned[i + pairs]) == pytest.approx(expected, abs=1e-6)


@given(first=places, second=places, shift=places, head_size=st.sampled_from(HEAD_SIZES))
def test_products_depend_on_the_difference_of_places_only(
    first: tuple[int, ...], second: tuple[int, ...], shift: tuple[int, ...], head_size: int
) -> None:
    query, key = torch.randn(2, head_size, dtype=torch.float64, generator=torch.Generator().manual_seed(head_size))
    here = _turned(query, first) @ _turned(key, second)
    moved_first, moved_second = (tuple(p + s for p, s in zip(place, shift, strict=True)) for place in (first, second))
    there = _turned(query, moved_first) @ _turned(key, moved_second)
    assert float(here) == pytest.approx(float(there), abs=1e-4)  # angles are fp32


@given(place=places, head_size=st.sampled_from(HEAD_SIZES))
def test_norm_is_kept(place: tuple[int, ...], head_size: int) -> None:
    features = torch.randn(head_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(_turned(features, place).norm()) == pytest.approx(float(features.norm()), rel=1e-6)


@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_no_two_places_of_a_grid_of_16_collide(head_size: int) -> None:
    """Rotations at two places differ as the rotation by their difference differs from none, which is checked for all."""
    offsets = torch.tensor([d for d in itertools.product(range(-15, 16), repeat=3) if d != (0, 0, 0)])
    angles = rotary_angles(offsets.float(), head_size)
    farthest_pair = (2 * (angles / 2).sin()).abs().amax(1)  # |exp(i angle) - 1|
    assert float(farthest_pair.min()) > 0.1
