"""Measures under counts: each row equals scikit-learn's measure of the subjects drawn so often."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from panfm.evaluation import probes
from panfm.evaluation.probes import Floats
from panfm.evaluation.resampling import auprc, auroc, draw_counts, estimate, macro, mean_absolute_error, r2


def _people(seed: int, number: int, ties: bool) -> tuple[Floats, Floats, Floats]:
    draws = np.random.default_rng(seed)
    label = np.concatenate([[0.0, 1.0, np.nan], draws.integers(2, size=number)])
    scores = draws.integers(4, size=number + 3).astype(float) if ties else draws.normal(size=number + 3)
    return label, scores, draw_counts(number + 3, draws, resamples=5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.booleans())
def test_classes_equal_scikit_learns_on_the_drawn_subjects(seed: int, number: int, ties: bool) -> None:
    label, scores, counts = _people(seed, number, ties)
    found = {"area": auroc(label, scores, counts), "precision": auprc(label, scores, counts)}
    for row, times in enumerate(counts.astype(int)):
        drawn = np.repeat(np.arange(len(label)), np.where(np.isnan(label), 0, times))
        if len(np.unique(label[drawn])) == 2:
            expected = metrics.roc_auc_score(label[drawn], scores[drawn])
            assert found["area"][row] == pytest.approx(expected, abs=1e-12)
            expected = metrics.average_precision_score(label[drawn], scores[drawn])
            assert found["precision"][row] == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(found["area"][row])


def test_numbers_equal_scikit_learns_on_the_drawn_subjects() -> None:
    draws = np.random.default_rng(0)
    target, scores = 60 + 8 * draws.normal(size=40), 60 + 8 * draws.normal(size=40)
    target[3] = np.nan
    counts = draw_counts(40, draws, resamples=4)
    for row, times in enumerate(counts.astype(int)):
        drawn = np.repeat(np.arange(40), np.where(np.isnan(target), 0, times))
        assert r2(target, scores, counts)[row] == pytest.approx(metrics.r2_score(target[drawn], scores[drawn]))
        expected = metrics.mean_absolute_error(target[drawn], scores[drawn])
        assert mean_absolute_error(target, scores, counts)[row] == pytest.approx(expected)


def test_it_is_the_bootstrap_that_probes_have_had() -> None:
    draws = np.random.default_rng(1)
    labels, scores = draws.integers(2, size=(3, 50)).astype(float), draws.normal(size=(3, 50))
    counts = np.ones((201, 50))
    drawn = np.random.default_rng(9).integers(50, size=(200, 50))
    counts[1:] = [np.bincount(row, minlength=50) for row in drawn]
    found = macro(np.stack([auroc(label, row, counts) for label, row in zip(labels, scores, strict=True)]))
    expected = probes.bootstrap(probes.auc, labels, scores, np.random.default_rng(9), resamples=200)
    assert found[1:] == pytest.approx(expected, abs=1e-12)


def test_counts_draw_as_many_as_there_are() -> None:
    counts = draw_counts(7, np.random.default_rng(2), resamples=50)
    assert np.array_equal(counts[0], np.ones(7))
    assert np.array_equal(counts.sum(1), np.full(51, 7.0))
    assert counts[1:].max() > 1


def test_what_is_undefined_is_left_out_of_means_and_intervals() -> None:
    assert np.array_equal(macro(np.array([[1.0, np.nan], [3.0, np.nan]])), [2.0, np.nan], equal_nan=True)
    found = estimate(np.array([0.5, np.nan, 0.4, 0.6]))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.405, 0.595))
