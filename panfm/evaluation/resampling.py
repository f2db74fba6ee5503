"""Subject-bootstrap: how often each test subject is drawn, and the measures of a probe under such counts.

A resample is a row of counts and not a list of subjects: scores are compared once for all resamples, and the rest is a product
of matrices, which makes 127 organ sets of 27 labels bearable. Row 0 counts everybody once: its value is the estimate itself.
One table of counts for all embeddings and organ sets makes every difference between them a paired one.

Legend: R rows of counts (1 + resamples), n subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panfm.evaluation.probes import Floats

_PAIRS_AT_ONCE = 512
"""Positives that are compared with all negatives at once: bounds the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with the middle 95 % of its resamples; NaN where it is not defined."""

    value: float
    low: float
    high: float


def draw_counts(num_subjects: int, generator: np.random.Generator, resamples: int = 1000) -> Floats:
    """How often each subject is drawn: [1 + resamples, n]; the first row counts everybody once."""
    counts = np.ones((1 + resamples, num_subjects))
    for row in counts[1:]:
        row[:] = np.bincount(generator.integers(num_subjects, size=num_subjects), minlength=num_subjects)
    return counts


def estimate(values: Floats) -> Estimate:
    """Value and interval of [R] values, of which the first is of everybody; resamples without a value are left out."""
    known = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(known, (2.5, 97.5)) if known.size else (np.nan, np.nan)
    return Estimate(value=float(values[0]), low=float(low), high=float(high))


def macro(values: Floats) -> Floats:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        mean: Floats = np.where(known, values, 0.0).sum(0) / known.sum(0)
    return mean


def auroc(label: Floats, scores: Floats, counts: Floats) -> Floats:
    """Area under the ROC curve, ties counting half.

    Args:
        label: [n], 0 or 1; NaN where unknown, those subjects do not count.
        scores: [..., n]; many at once share the work on the counts.
        counts: [R, n].
    Returns: [..., R]; NaN where a class is absent.
    """
    ill, well = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    drawn_ill, drawn_well = counts[:, ill].astype(np.float32), counts[:, well].astype(np.float32)
    pairs = drawn_ill.sum(1, dtype=np.float64) * drawn_well.sum(1, dtype=np.float64)
    rows = [_won(row[ill], row[well], drawn_ill, drawn_well) for row in scores.reshape(-1, scores.shape[-1])]
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = np.stack(rows) / pairs
    return area.reshape(*scores.shape[:-1], len(counts))


def _won(ill: Floats, well: Floats, drawn_ill: NDArray[np.float32], drawn_well: NDArray[np.float32]) -> Floats:
    """Pairs in which the ill subject scores higher, ties half, [R]; whole and half numbers this small are exact in fp32."""
    won = np.zeros(len(drawn_ill))
    for start in range(0, len(ill), _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        ahead = (np.sign(ill[some, None] - well) / 2 + 0.5).astype(np.float32)
        won += ((drawn_ill[:, some] @ ahead) * drawn_well).sum(1, dtype=np.float64)
    return won


def auprc(label: Floats, scores: Floats, counts: Floats) -> Floats:
    """Area under the precision-recall curve as average precision: the precision at each positive's score, averaged.

    Arguments and result as for `auroc`; chance is the share of positives. Subjects of equal scores come in together.
    """
    label, scores, counts = _known(label, scores, counts)
    order = np.argsort(-scores, kind="stable")
    ranked = -scores[order]
    positive, drawn = (counts * label)[:, order], np.cumsum(counts[:, order], axis=1)
    through = np.searchsorted(ranked, ranked, side="right") - 1  # where the subjects of an equal score end
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(positive > 0, np.cumsum(positive, axis=1)[:, through] / drawn[:, through], 0.0)
        area: Floats = (positive * precision).sum(1) / positive.sum(1)
    return area


def r2(target: Floats, scores: Floats, counts: Floats) -> Floats:
    """Coefficient of determination; arguments and result as for `auroc`, the target any number."""
    target, scores, counts = _known(target, scores, counts)
    total = counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = counts @ target / total
        spread = counts @ target**2 - total * mean**2
        result: Floats = 1 - counts @ (target - scores) ** 2 / spread
    return result


def mean_absolute_error(target: Floats, scores: Floats, counts: Floats) -> Floats:
    """Mean absolute error; arguments and result as for `r2`."""
    target, scores, counts = _known(target, scores, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: Floats = counts @ np.abs(target - scores) / counts.sum(1)
    return result


Counted = Callable[[Floats, Floats, Floats], Floats]
"""A measure under counts."""


def _known(target: Floats, scores: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    known = np.isfinite(target)
    return target[known], scores[known], counts[:, known]
