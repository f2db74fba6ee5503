"""Linear probes: what a linear map reads from frozen embeddings, fitted on probe subjects and read once on test subjects.

Ridge regression for numbers and, on 0/1 targets, for labels; its strength is chosen by leave-one-out error on the probe
subjects. Scaling, PCA and ridge see probe subjects only. Intervals are bootstrap intervals over test subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]
Predict = Callable[[NDArray[np.floating]], Floats]
"""A fitted probe: test embeddings [n, F] to scores [targets, n]."""

STRENGTHS = np.logspace(-1, 6, 29)
"""Ridge strengths tried, for standardised features."""
COMPONENTS = (5, 10, 20, 40, 80, 160)
"""Numbers of principal components tried, as far as there are subjects."""


def ridge_scores(train: NDArray[np.floating], targets: Floats, test: NDArray[np.floating]) -> Floats:
    """Standardise, fit a ridge per target, predict.

    Args:
        train: [m, F] embeddings of probe subjects.
        targets: [targets, m]; NaN where unknown, those subjects are left out for that target.
        test: [n, F].
    Returns: [targets, n].
    """
    return fit_ridge(train, targets)(test)


def fit_ridge(train: NDArray[np.floating], targets: Floats) -> Predict:
    """The probe of `ridge_scores`, fitted once, for several tables of test embeddings."""
    scaler = StandardScaler().fit(train)
    predict = _fit_ridge(scaler.transform(train), targets)
    return lambda test: predict(scaler.transform(test))


def pca_ridge_scores(train: NDArray[np.floating], targets: Floats, test: NDArray[np.floating]) -> Floats:
    """PCA on the raw crops, then ridge; the number of components by 5-fold cross-validation on the probe subjects.

    Arguments and result as for `ridge_scores`.
    """
    # Principal components of any of these subjects lie in what all of them span: the same scores from n numbers each, not voxels.
    spanned = np.linalg.qr(train.T).Q
    train, test = train @ spanned, test @ spanned
    fits = [number for number in COMPONENTS if number < min(0.8 * len(train), train.shape[1] + 1)]
    errors = np.zeros((len(targets), len(fits)))
    for inside, outside in KFold(5, shuffle=True, random_state=0).split(train):
        predicted = _by_components(train[inside], targets[:, inside], train[outside], fits)
        errors += np.nansum((predicted - targets[:, outside]) ** 2, axis=-1).T
    predicted = _by_components(train, targets, test, fits)
    best: Floats = predicted[errors.argmin(1), np.arange(len(targets))]
    return best


def _by_components(
    train: NDArray[np.floating], targets: Floats, test: NDArray[np.floating], numbers: Sequence[int]
) -> Floats:
    """Predictions with each number of components, [numbers, targets, n]."""
    pca = PCA(numbers[-1], svd_solver="full").fit(train)
    scores, scores_test = pca.transform(train), pca.transform(test)
    return np.stack([_ridge(scores[:, :number], targets, scores_test[:, :number]) for number in numbers])


def _ridge(train: NDArray[np.floating], targets: Floats, test: NDArray[np.floating]) -> Floats:
    return _fit_ridge(train, targets)(test)


def _fit_ridge(train: NDArray[np.floating], targets: Floats) -> Predict:
    """One ridge per target; targets that are known for the same subjects share a decomposition."""
    known = np.isfinite(targets)
    fitted = []
    for pattern in np.unique(known, axis=0):
        rows = np.flatnonzero((known == pattern).all(1))
        ridge = RidgeCV(STRENGTHS, alpha_per_target=True).fit(train[pattern], targets[rows][:, pattern].T)
        fitted.append((rows, ridge))

    def predict(test: NDArray[np.floating]) -> Floats:
        predicted = np.empty((len(targets), len(test)))
        for rows, ridge in fitted:
            predicted[rows] = ridge.predict(test).reshape(len(test), len(rows)).T
        return predicted

    return predict


def r2(target: Floats, scores: Floats) -> Floats:
    """Coefficient of determination along the last axis; both [..., n]."""
    residual = ((target - scores) ** 2).sum(-1)
    result: Floats = 1 - residual / ((target - target.mean(-1, keepdims=True)) ** 2).sum(-1)
    return result


def mean_absolute_error(target: Floats, scores: Floats) -> Floats:
    """Mean absolute error along the last axis; both [..., n]."""
    result: Floats = np.abs(target - scores).mean(-1)
    return result


def auc(label: Floats, scores: Floats) -> Floats:
    """Area under the ROC curve along the last axis, ties counting half; both [..., n]; NaN where one class is absent."""
    ranks = rankdata(scores, axis=-1)
    positive = label.sum(-1)
    negative = label.shape[-1] - positive
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Floats = ((ranks * label).sum(-1) - positive * (positive + 1) / 2) / (positive * negative)
    return result


Measure = Callable[[Floats, Floats], Floats]


def bootstrap(
    measure: Measure, targets: Floats, scores: Floats, generator: np.random.Generator, resamples: int = 1000
) -> Floats:
    """A measure, averaged over targets, on resampled test subjects.

    Args:
        targets, scores: [targets, n]; known for every subject.
        generator: the same stream for two score tables gives paired resamples.
    Returns: [resamples].
    """
    draws = generator.integers(targets.shape[1], size=(resamples, targets.shape[1]))
    values = np.stack([measure(target[draws], score[draws]) for target, score in zip(targets, scores, strict=True)])
    averaged: Floats = np.nanmean(values, axis=0)
    return averaged


def interval(samples: Floats) -> tuple[float, float]:
    """The middle 95 % of bootstrap samples."""
    low, high = np.percentile(samples, (2.5, 97.5))
    return float(low), float(high)
