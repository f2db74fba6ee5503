"""Robust means, against NumPy and SciPy, and against liars."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean
from torch import Tensor

from panfm.randomness import stream
from server.aggregation.robust import in_order, median, num_trimmed, trimmed

seeds = st.integers(0, 2**20)


def _values(seed: int, sites: int, size: int = 6) -> list[Tensor]:
    """With ties, which sorting must not trip over."""
    draws = stream(seed, "values")
    whole = draws.integers(-3, 4, size=(sites, size)) + (draws.normal(size=(sites, size)) * (draws.random(size) < 0.7))
    return list(torch.from_numpy(whole.astype(np.float32)))


@pytest.mark.parametrize("size", range(1, 13))
def test_the_network_sorts_every_row_of_zeros_and_ones(size: int) -> None:
    """Knuth's 0-1 principle: a network that sorts these sorts everything."""
    columns = torch.tensor(list(itertools.product([0.0, 1.0], repeat=size))).T
    assert torch.equal(torch.stack(in_order(list(columns))), columns.sort(dim=0).values)


@given(seed=seeds, sites=st.integers(1, 40))
def test_sorting_is_numpys(seed: int, sites: int) -> None:
    values = _values(seed, sites)
    before = torch.stack(values).clone()
    np.testing.assert_array_equal(torch.stack(in_order(values)).numpy(), np.sort(before.numpy(), axis=0))
    assert torch.equal(torch.stack(values), before)


@given(seed=seeds, sites=st.integers(1, 20))
def test_median_is_numpys(seed: int, sites: int) -> None:
    values = _values(seed, sites)
    expected = np.median(torch.stack(values).double().numpy(), axis=0)
    np.testing.assert_array_equal(median(values).numpy(), expected)


@given(seed=seeds, sites=st.integers(5, 20), share=st.sampled_from([0.2, 0.25, 0.3, 0.4]))
def test_trimmed_mean_is_scipys(seed: int, sites: int, share: float) -> None:
    values = _values(seed, sites)
    # Scipy cuts int(share * n) at each end; so few sites never meet the slack of num_trimmed.
    expected = trim_mean(torch.stack(values).double().numpy(), share, axis=0)
    np.testing.assert_allclose(trimmed(values, num_trimmed(sites, share)).numpy(), expected, rtol=1e-12, atol=1e-12)


@given(seed=seeds, liars=st.integers(1, 3), extra=st.integers(1, 4), huge=st.sampled_from([-1e30, 1e30, -100.0, 1e4]))
def test_liars_cannot_leave_the_range_of_the_honest(seed: int, liars: int, extra: int, huge: float) -> None:
    honest = _values(seed, 2 * liars + extra)
    values = [*honest, *(torch.full((6,), huge) for _ in range(liars))]
    low, high = torch.stack(honest).amin(0).double(), torch.stack(honest).amax(0).double()
    for found in (median(values), trimmed(values, liars)):
        assert bool((found >= low - 1e-12).all())
        assert bool((found <= high + 1e-12).all())


def test_how_many_are_trimmed() -> None:
    assert [num_trimmed(sites, 0.25) for sites in (5, 7, 8, 12, 16)] == [1, 1, 2, 3, 4]
    assert num_trimmed(5, 0.01) == 1  # a robust mean leaves at least one out
    assert num_trimmed(5, 0.49) == 2
    assert num_trimmed(6, 0.49) == 2  # and never all
    assert num_trimmed(100, 0.29) == 29  # 0.29 * 100 is 28.999999999999996
