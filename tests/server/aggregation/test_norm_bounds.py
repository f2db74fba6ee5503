"""Norm bounds: what is shortened and by how much, and that a liar cannot widen the bound it is held to."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import RobustConfig
from panfm.randomness import stream
from server.aggregation.norm_bounds import bounded, delta_norm, norm_bound, squared_norm
from server.aggregation.votes import BLOCK, DeltasInMemory

norms = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e6), min_size=1)
past_norms = st.lists(st.just(0.0) | st.floats(1e-3, 1e3), max_size=12)


def test_norm_is_numpys_over_all_blocks_of_all_names() -> None:
    draws = stream(1, "norm")
    arrays = {
        f"trunk.{i}": draws.normal(size=size).astype(np.float32) for i, size in enumerate((1, BLOCK, 2 * BLOCK + 7))
    }
    deltas = DeltasInMemory({name: torch.from_numpy(array) for name, array in arrays.items()})
    expected = np.linalg.norm(np.concatenate([array.astype(np.float64) for array in arrays.values()]))
    assert delta_norm(deltas, sorted(arrays)) == pytest.approx(expected, rel=1e-12)
    assert delta_norm(deltas, ["trunk.0"]) == abs(float(arrays["trunk.0"][0]))
    assert delta_norm(deltas, []) == 0.0


@given(where=st.integers(0, 2 * BLOCK + 2), bad=st.sampled_from([math.nan, math.inf, -math.inf]))
def test_one_bad_element_makes_the_square_not_finite(where: int, bad: float) -> None:
    tensor = torch.zeros(2 * BLOCK + 3)
    tensor[where] = bad
    assert not math.isfinite(squared_norm(DeltasInMemory({"trunk.w": tensor}), "trunk.w"))


def test_the_largest_numbers_are_finite() -> None:
    tensor = torch.full((BLOCK,), torch.finfo(torch.float32).max)
    assert math.isfinite(squared_norm(DeltasInMemory({"trunk.w": tensor}), "trunk.w"))


@given(norms=norms, past=past_norms, longest=st.floats(0.01, 1e4), factor=st.just(0.0) | st.floats(0.01, 5))
def test_nothing_enters_the_mean_longer_than_the_bound(
    norms: dict[str, float], past: list[float], longest: float, factor: float
) -> None:
    config = RobustConfig(max_norm=longest, past_factor=factor)
    done = bounded(norms, past, config)
    bound = norm_bound(past, config)
    assert bound <= longest
    assert list(done.factors) == sorted(norms)
    for site, norm in norms.items():
        assert norm * done.factors[site] <= bound * (1 + 1e-12)
        assert (done.factors[site] == 1) == (norm <= bound)


def test_by_hand() -> None:
    # Past medians 1, 3, 2: their median is 2, so twice that is 4; of 1, 5 and 8 two are shortened.
    done = bounded({"c": 8.0, "a": 1.0, "b": 5.0}, [1.0, 3.0, 2.0], RobustConfig(past_factor=2.0))
    assert done.factors == {"a": 1.0, "b": 0.8, "c": 0.5}
    assert done.past == [1.0, 3.0, 2.0, 4.0]
    # The absolute bound alone keeps no past; without any bound nothing is shortened.
    assert bounded({"a": 8.0}, [], RobustConfig(max_norm=2.0)).past == []
    assert bounded({"a": 8.0}, [], RobustConfig(max_norm=2.0)).factors == {"a": 0.25}
    assert norm_bound([1.0], RobustConfig()) == math.inf
    # The first round of a group has no past, and rounds in which nothing moved say nothing.
    assert norm_bound([], RobustConfig(past_factor=2.0)) == math.inf
    assert norm_bound([0.0, 0.0], RobustConfig(past_factor=2.0, max_norm=7.0)) == 7.0
    # Only the last rounds count.
    assert bounded({"a": 9.0}, [1.0, 2.0, 3.0], RobustConfig(past_factor=5.0, past_rounds=2)).past == [3.0, 9.0]


@given(honest=st.lists(st.floats(0.5, 2), min_size=3, max_size=8), liar=st.floats(2, 1e9), rounds=st.integers(1, 12))
def test_a_minority_cannot_widen_the_bound(honest: list[float], liar: float, rounds: int) -> None:
    """Fewer liars than half: what stands for a round is never longer than the longest honest delta."""
    config, past = RobustConfig(past_factor=3.0), list[float]()
    liars = {f"liar{i}": liar for i in range((len(honest) - 1) // 2)}
    for _ in range(rounds):
        past = bounded({**{f"site{i}": norm for i, norm in enumerate(honest)}, **liars}, past, config).past
        assert past[-1] <= max(honest)
    assert norm_bound(past, config) <= 3 * max(honest)


def test_a_lone_site_widens_it_by_the_factor_at_most() -> None:
    """Where nobody honest stands beside it, the bound still grows only step by step."""
    config, past = RobustConfig(past_factor=2.0, past_rounds=1), [1.0]
    for number in range(1, 6):
        past = bounded({"alone": 1e9}, past, config).past
        assert past == [2.0**number]
