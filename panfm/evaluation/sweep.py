"""The missing-organ sweep: one score for every set of organs of the same subjects, and what to read from all of them.

Per number of missing organs the mean over the sets and the worst set; the area under the curve of the means; and what is left
without the organs that models are known to lean on. Legend: S organ sets, C label columns, R rows of counts, n subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from panfm.evaluation.organ_sets import OrganSet
from panfm.evaluation.probes import Floats
from panfm.evaluation.resampling import Estimate, auroc, estimate, macro


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepValues:
    """The score of each set under each row of counts."""

    sets: tuple[OrganSet, ...]
    """All non-empty sets, the complete one first."""
    values: Floats
    """[S, R]."""

    @property
    def organs(self) -> OrganSet:
        return self.sets[0]

    @property
    def by_set(self) -> dict[OrganSet, Floats]:
        return dict(zip(self.sets, self.values, strict=True))

    def missing(self, number: int) -> list[int]:
        """Rows of the sets that lack so many organs."""
        return [row for row, held in enumerate(self.sets) if len(self.organs) - len(held) == number]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByMissing:
    """All sets that lack equally many organs."""

    missing: int
    num_sets: int
    mean: Estimate
    worst: Estimate
    """Of the set that is the worst over all test subjects; its interval does not count that it was chosen for it."""
    worst_set: OrganSet


def sweep_values(sets: Sequence[OrganSet], scores: Floats, labels: Floats, counts: Floats) -> SweepValues:
    """Area under the ROC curve of each set, averaged over label columns.

    Args:
        scores: [S, C, n], what a probe says from each set.
        labels: [C, n], NaN where unknown.
        counts: [R, n].
    """
    by_label = [auroc(label, scores[:, column], counts) for column, label in enumerate(labels)]
    return SweepValues(sets=tuple(sets), values=macro(np.stack(by_label)))


def by_missing(sweep: SweepValues) -> list[ByMissing]:
    """What is left when 0, 1, ... organs are missing."""
    return [_missing(sweep, number) for number in range(len(sweep.organs))]


def mean_curve(sweep: SweepValues) -> Floats:
    """Mean over the sets that lack 0, 1, ... organs, [organs, R]."""
    return np.stack([sweep.values[sweep.missing(number)].mean(0) for number in range(len(sweep.organs))])


def area(sweep: SweepValues) -> Floats:
    """Area under the curve of the means by the trapezoid rule, over its width: [R], on the scale of the score itself."""
    curve = mean_curve(sweep)
    if len(curve) == 1:
        curve = np.repeat(curve, 2, axis=0)
    inner: Floats = (curve[0] / 2 + curve[1:-1].sum(0) + curve[-1] / 2) / (len(curve) - 1)
    return inner


def without(sweep: SweepValues, organs: Collection[str]) -> Floats:
    """The score from all organs but these, [R].

    Raises: ValueError when nothing is left.
    """
    left = tuple(organ for organ in sweep.organs if organ not in organs)
    if not left:
        raise ValueError(f"without {', '.join(organs)} nothing of {', '.join(sweep.organs)} is left")
    return sweep.by_set[left]


def _missing(sweep: SweepValues, number: int) -> ByMissing:
    rows = sweep.missing(number)
    worst = min(rows, key=lambda row: sweep.values[row, 0])
    return ByMissing(
        missing=number,
        num_sets=len(rows),
        mean=estimate(sweep.values[rows].mean(0)),
        worst=estimate(sweep.values[worst]),
        worst_set=sweep.sets[worst],
    )
