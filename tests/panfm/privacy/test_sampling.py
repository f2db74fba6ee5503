"""Samples are Poisson: each subject by its own coin, never above the rate, from the operating system, perhaps nobody."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.privacy.sampling import chosen, physical_batches, poisson_sample

# Words of a fixed stream, so that the statistical tests pass or fail for good.
WORDS = np.random.Generator(np.random.Philox(key=5)).integers(0, 2**64, size=(20_000, 50), dtype=np.uint64)


@pytest.mark.parametrize("rate", [0.02, 0.25, 0.9])
def test_sizes_are_binomial(rate: float) -> None:
    sizes = np.array([len(chosen(words, rate)) for words in WORDS])
    mean, variance = 50 * rate, 50 * rate * (1 - rate)
    assert abs(sizes.mean() - mean) < 4 * np.sqrt(variance / len(sizes))
    assert abs(sizes.var() - variance) < 5 * variance * np.sqrt(3 / len(sizes))
    assert abs((sizes == 0).mean() - (1 - rate) ** 50) < 4 * np.sqrt(0.25 / len(sizes))


def test_subjects_are_drawn_independently() -> None:
    members = np.zeros(WORDS.shape)
    for row, words in zip(members, WORDS, strict=True):
        row[chosen(words, 0.3)] = 1
    pairs = np.asarray(np.corrcoef(members.T))[np.triu_indices(50, k=1)]
    assert np.abs(pairs).max() < 5 / np.sqrt(len(WORDS))


@given(st.floats(0, 1, exclude_min=True))
def test_chance_is_the_rate_and_never_above_it(rate: float) -> None:
    """The last word that is taken and the first that is not enclose the rate to 2**-63."""
    below = min(int(Fraction(rate) * 2**63), 2**63)
    edge = [word for word in (below - 1, below) if 0 <= word < 2**63]
    taken = chosen(np.array(edge, dtype=np.uint64) << np.uint64(1), rate)
    assert [edge[place] for place in taken] == [word for word in edge if Fraction(word + 1, 2**63) <= Fraction(rate)]


def test_everybody_takes_part_at_rate_one_and_low_bits_do_not_count() -> None:
    assert chosen(np.array([0, 2**64 - 1, 5], dtype=np.uint64), 1.0).tolist() == [0, 1, 2]
    assert chosen(np.array([2**63 - 1, 2**63], dtype=np.uint64), 0.5).tolist() == [0]


def test_no_seed_reaches_the_draws() -> None:
    def seeded() -> list[int]:  # what the library must not do is done here to show that it would not matter
        torch.manual_seed(7)  # noqa: TID251
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)  # noqa: TID251
        return list(poisson_sample(400, 0.5))

    assert seeded() != seeded()


def test_sample_is_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: (b"\0" * 8 + b"\xff" * 8) * (size // 16))
    assert poisson_sample(6, 0.5).tolist() == [0, 2, 4]


def test_sample_may_be_empty_and_so_are_its_parts() -> None:
    sample = poisson_sample(100, 1e-12)
    assert sample.shape == (0,)
    assert list(physical_batches(sample.tolist(), 8)) == []
    assert poisson_sample(0, 0.5).shape == (0,)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_parts_are_the_sample_in_order(sample: list[int], most: int) -> None:
    parts = list(physical_batches(sample, most))
    assert [subject for part in parts for subject in part] == sample
    assert all(1 <= len(part) <= most for part in parts)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_rate_that_is_no_chance_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(4, rate)


def test_empty_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 subject"):
        list(physical_batches([1, 2], 0))
