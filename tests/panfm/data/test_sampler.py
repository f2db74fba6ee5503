"""Everybody in turn, or rare organs more often: the law of both, and that a generator decides all of it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.data.sampler import balanced_indices, batch_indices, rarity
from panfm.randomness import stream


@given(
    num_subjects=st.integers(1, 30),
    batch_size=st.integers(1, 40),
    num_steps=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_batches_are_passes_over_everybody(num_subjects: int, batch_size: int, num_steps: int, seed: int) -> None:
    batches = batch_indices(num_subjects, batch_size, num_steps, stream(seed))
    assert len(batches) == num_steps
    assert all(len(batch) == len(set(batch)) == min(batch_size, num_subjects) for batch in batches)
    counts = np.bincount([index for batch in batches for index in batch], minlength=num_subjects)
    # After any number of steps nobody is more than one pass ahead of anybody else.
    assert counts.max() - counts.min() <= 1
    assert batches == batch_indices(num_subjects, batch_size, num_steps, stream(seed))


def test_passes_are_reshuffled() -> None:
    first, second = batch_indices(20, 20, 2, stream(0))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second != list(range(20))


SITE = [{"brain"}] * 6 + [{"heart"}] * 2 + [{"brain", "heart"}, set()]
"""7 brains, 3 hearts; one subject has both, and one lost all that it had."""


def test_weights_are_the_sum_of_inverse_counts() -> None:
    brain, heart = Fraction(1, 7), Fraction(1, 3)
    weights = [brain] * 6 + [heart] * 2 + [brain + heart, Fraction(0)]
    assert sum(weights) == 2
    np.testing.assert_allclose(rarity(SITE), [float(weight / 2) for weight in weights], rtol=1e-12)


def test_single_organs_are_drawn_equally_often_however_rare() -> None:
    weights = rarity([{"brain"}] * 98 + [{"liver"}, {"heart"}])
    assert (weights[:98].sum(), weights[98], weights[99]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_first_draws_follow_the_weights() -> None:
    """20,000 draws of one: each count within 5 standard errors of its law."""
    draws = np.bincount(np.ravel(balanced_indices(SITE, 1, 20_000, stream(0))), minlength=10)
    expected = 20_000 * rarity(SITE)
    assert (np.abs(draws - expected) <= 5 * np.sqrt(expected)).all()
    assert draws[9] == 0


def test_a_batch_is_drawn_without_replacement_by_what_is_left() -> None:
    """P(both drawn) by the two orders in which they can come; 20,000 batches, 5 standard errors."""
    a, b, _ = weights = rarity([{"brain"}, {"brain"}, {"heart"}])
    both = a * b / (1 - a) + b * a / (1 - b)
    batches = balanced_indices([{"brain"}, {"brain"}, {"heart"}], 2, 20_000, stream(1))
    found = sum(set(batch) == {0, 1} for batch in batches) / len(batches)
    assert abs(found - both) <= 5 * np.sqrt(both * (1 - both) / len(batches))
    assert weights.sum() == pytest.approx(1)


@given(batch_size=st.integers(1, 12), num_steps=st.integers(0, 5), seed=st.integers(0, 99))
def test_balanced_batches_hold_nobody_twice_and_nobody_without_an_organ(
    batch_size: int, num_steps: int, seed: int
) -> None:
    batches = balanced_indices(SITE, batch_size, num_steps, stream(seed))
    assert len(batches) == num_steps
    assert all(len(batch) == len(set(batch)) == min(batch_size, 9) and 9 not in batch for batch in batches)
    assert batches == balanced_indices(SITE, batch_size, num_steps, stream(seed))
