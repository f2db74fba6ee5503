"""Probes against scikit-learn and closed forms, and that test subjects never leak into a fit."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error as sklearn_mae
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline

from panfm.evaluation.probes import (
    STRENGTHS,
    Floats,
    auc,
    bootstrap,
    interval,
    mean_absolute_error,
    pca_ridge_scores,
    r2,
    ridge_scores,
)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(4, 40), st.booleans())
def test_auc_equals_scikit_learns(seed: int, number: int, ties: bool) -> None:
    draws = np.random.default_rng(seed)
    label = np.concatenate([[0.0, 1.0], draws.integers(2, size=number)])
    score = draws.integers(4, size=number + 2).astype(float) if ties else draws.normal(size=number + 2)
    assert auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_auc_is_nan_where_one_class_is_absent() -> None:
    assert np.isnan(auc(np.zeros(5), np.arange(5.0)))


def test_r2_and_error_equal_scikit_learns() -> None:
    draws = np.random.default_rng(0)
    target, score = draws.normal(size=30), draws.normal(size=30)
    assert r2(target, score) == pytest.approx(r2_score(target, score))
    assert mean_absolute_error(target, score) == pytest.approx(sklearn_mae(target, score))


def linear_world(number: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of which a linear map gives the target up to a little noise; half to fit, half to test."""
    draws = np.random.default_rng(3)
    features = draws.normal(size=(2 * number, 5)) * np.array([1, 10, 100, 1, 1])
    target = features @ np.array([2.0, -0.3, 0.01, 0, 1]) + 0.1 * draws.normal(size=2 * number)
    return features[:number], target[:number], features[number:], target[number:]


@pytest.mark.parametrize("predict", [ridge_scores, pca_ridge_scores])
def test_a_linear_target_is_read(predict: object) -> None:
    train, target, test, truth = linear_world()
    assert callable(predict)
    scores = predict(train, np.stack([target, -target]), test)
    assert scores.shape == (2, len(test))
    assert r2(truth, scores[0]) > 0.98
    assert scores[1] == pytest.approx(-scores[0], abs=1e-6)


@pytest.mark.parametrize("predict", [ridge_scores, pca_ridge_scores])
def test_a_subjects_score_does_not_depend_on_the_other_test_subjects(predict: object) -> None:
    train, target, test, _ = linear_world()
    assert callable(predict)
    together = predict(train, target[None], test)[0]
    alone = predict(train, target[None], test[:1])[0]
    assert alone == pytest.approx(together[:1], rel=1e-9)


def test_unknown_labels_are_left_out_of_the_fit() -> None:
    train, target, test, _ = linear_world()
    holes = target.copy()
    holes[:20] = np.nan
    assert ridge_scores(train, holes[None], test) == pytest.approx(
        ridge_scores(train[20:], target[None, 20:], test), rel=0.05
    )


def test_components_are_those_of_the_voxels_themselves() -> None:
    """Oracle: scikit-learn's PCA over all columns, here ten times as many as subjects, in each fold and at the end."""
    draws = np.random.default_rng(6)
    train, test = draws.normal(size=(60, 600)) * np.linspace(3, 0.1, 600), draws.normal(size=(9, 600))
    target = train[:, :3].sum(1) + draws.normal(size=60)
    numbers, errors = [5, 10, 20, 40], []
    for number in numbers:
        held_out = [
            target[outside] - _pca_then_ridge(number, train[inside], target[inside], train[outside])
            for inside, outside in KFold(5, shuffle=True, random_state=0).split(train)
        ]
        errors.append((np.concatenate(held_out) ** 2).sum())
    expected = _pca_then_ridge(numbers[int(np.argmin(errors))], train, target, test)
    assert pca_ridge_scores(train, target[None], test)[0] == pytest.approx(expected, rel=1e-6)


def _pca_then_ridge(number: int, train: Floats, target: Floats, test: Floats) -> Floats:
    model = make_pipeline(PCA(number, svd_solver="full"), RidgeCV(STRENGTHS, alpha_per_target=True))
    predicted: Floats = model.fit(train, target[:, None]).predict(test).ravel()
    return predicted


def test_noise_reads_as_chance() -> None:
    draws = np.random.default_rng(5)
    scores = ridge_scores(draws.normal(size=(200, 30)), draws.normal(size=(1, 200)), draws.normal(size=(200, 30)))
    assert r2(draws.normal(size=200), scores[0]) < 0.1


def test_bootstrap_is_paired_and_covers_the_value() -> None:
    draws = np.random.default_rng(7)
    target = draws.normal(size=(3, 80))
    score = target + draws.normal(size=(3, 80))
    first = bootstrap(r2, target, score, np.random.default_rng(1), resamples=200)
    second = bootstrap(r2, target, score, np.random.default_rng(1), resamples=200)
    assert np.array_equal(first, second)
    low, high = interval(first)
    assert low < float(np.mean(r2(target, score))) < high
