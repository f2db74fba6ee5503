"""Shares sum to 1 over a subject's organs, lift is 1 on average over its tokens, and nobody enters another's figures."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.pretrain.saliency import Saliency, saliency_of, share_entropy

TOKENS = {"brain": 9, "heart": 5, "liver": 3, "spleen": 65}
ORGANS = tuple(TOKENS)
maps = st.lists(
    st.dictionaries(st.sampled_from(ORGANS), st.floats(2**-20, 1.0, width=32), min_size=1), min_size=1, max_size=6
)
"""Attention to each organ that each subject has."""


def _saliency(attention: list[dict[str, float]], organs: tuple[str, ...] = ORGANS) -> Saliency:
    rows = {o: [row for row, own in enumerate(attention) if o in own] for o in organs}
    rows = {organ: present for organ, present in rows.items() if present}
    return saliency_of(
        {organ: torch.tensor([attention[row][organ] for row in present]) for organ, present in rows.items()},
        {organ: torch.tensor(present) for organ, present in rows.items()},
        TOKENS,
        organs,
        len(attention),
    )


@given(attention=maps)
def test_shares_and_lift_by_loops(attention: list[dict[str, float]]) -> None:
    saliency = _saliency(attention)
    for row, own in enumerate(attention):
        tokens = sum(TOKENS[organ] for organ in own)
        for column, organ in enumerate(ORGANS):
            share, lift = float(saliency.share[row, column]), float(saliency.lift[row, column])
            assert bool(saliency.presence[row, column]) == (organ in own)
            expected = own[organ] / sum(own.values()) if organ in own else 0.0
            assert share == pytest.approx(expected, rel=1e-5)
            assert lift == pytest.approx(expected / (TOKENS[organ] / tokens), rel=1e-5)


@given(attention=maps)
def test_shares_sum_to_one_and_lift_is_one_on_average_over_tokens(attention: list[dict[str, float]]) -> None:
    saliency = _saliency(attention)
    tokens = torch.tensor([float(TOKENS[organ]) for organ in ORGANS]) * saliency.presence
    mean_lift = (saliency.lift * tokens).sum(1) / tokens.sum(1)
    for values in (saliency.share.sum(1), mean_lift):
        assert torch.allclose(values, torch.ones(len(attention)), atol=1e-5)
    assert saliency.share.dtype == saliency.lift.dtype == torch.float32


def test_attention_in_proportion_to_tokens_is_no_preference() -> None:
    own = {organ: count / 1000 for organ, count in TOKENS.items()}
    assert torch.allclose(_saliency([own]).lift, torch.ones(1, 4))


def test_organs_that_nobody_has_are_columns_of_zeros() -> None:
    saliency = _saliency([{"liver": 0.2}], ("brain", "liver"))
    assert saliency.share.tolist() == [[0.0, 1.0]]
    assert saliency.lift.tolist() == [[0.0, 1.0]]


def test_attention_that_vanished_still_gives_shares() -> None:
    """A subject token that looks at itself only: fp32 rounds what is left for the organs to 0."""
    saliency = _saliency([{"brain": 0.0, "liver": 0.0}, {"brain": 0.3, "liver": 0.0}])
    assert torch.allclose(saliency.share[0], torch.tensor([0.5, 0.0, 0.5, 0.0]))
    assert torch.allclose(saliency.share[1], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert bool(torch.isfinite(saliency.lift).all())


def test_entropy_of_shares() -> None:
    """Even shares give 1, one organ that takes all gives 0, and subjects with a single organ are not counted."""
    a, b = 0.9, 0.1
    entropies: Tensor = share_entropy(
        _saliency([{"brain": 0.1, "heart": 0.1, "liver": 0.1}, {"brain": 0.5}, {"brain": a, "liver": b}])
    )
    expected = -(a * math.log(a) + b * math.log(b)) / math.log(2)
    assert entropies.tolist() == pytest.approx([1.0, expected], rel=1e-5)
    assert share_entropy(_saliency([{"brain": 1.0, "heart": 0.0}])).tolist() == pytest.approx([0.0], abs=1e-6)
    assert share_entropy(_saliency([{"brain": 0.5}])).numel() == 0
