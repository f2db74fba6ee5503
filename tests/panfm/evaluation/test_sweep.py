"""The sweep's summaries by hand, and the score of each set by scikit-learn."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from panfm.evaluation.organ_sets import all_sets
from panfm.evaluation.resampling import draw_counts
from panfm.evaluation.sweep import SweepValues, area, by_missing, sweep_values, without

THREE = ("brain", "heart", "liver")


def _made() -> SweepValues:
    worth = {3: [0.9], 2: [0.8, 0.7, 0.6], 1: [0.5, 0.75, 0.55]}
    column = np.array([value for number in (3, 2, 1) for value in worth[number]])
    return SweepValues(sets=all_sets(THREE), values=np.stack([column, column - 0.01, column + 0.01], axis=1))


def test_sets_come_complete_first_and_each_once() -> None:
    sets = all_sets(("a", "b", "c", "d", "e", "f", "g"))
    assert len(set(sets)) == 127
    assert sets[0] == ("a", "b", "c", "d", "e", "f", "g")
    assert [sum(len(held) == 7 - k for held in sets) for k in range(7)] == [1, 7, 21, 35, 35, 21, 7]


def test_mean_and_worst_by_missing_organs() -> None:
    rows = by_missing(_made())
    assert [row.num_sets for row in rows] == [1, 3, 3]
    assert [row.mean.value for row in rows] == pytest.approx([0.9, 0.7, 0.6])
    assert [row.worst.value for row in rows] == pytest.approx([0.9, 0.6, 0.5])
    assert [row.worst_set for row in rows] == [THREE, ("heart", "liver"), ("brain",)]
    assert rows[1].worst.low < rows[1].worst.value < rows[1].worst.high


def test_area_is_the_trapezoids_over_the_width() -> None:
    curve = [0.9, 0.7, 0.6]
    assert area(_made())[0] == pytest.approx(np.trapezoid(curve, dx=1) / 2)
    one = SweepValues(sets=(("brain",),), values=np.array([[0.7, 0.6]]))
    assert area(one) == pytest.approx([0.7, 0.6])


def test_without_some_organs_is_the_set_of_the_others() -> None:
    assert without(_made(), ["heart"])[0] == pytest.approx(0.7)
    assert without(_made(), ["heart", "liver"])[0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="nothing"):
        without(_made(), THREE)


def test_each_sets_score_is_the_mean_area_over_labels() -> None:
    draws = np.random.default_rng(3)
    sets = all_sets(("a", "b"))
    labels, scores = draws.integers(2, size=(2, 30)).astype(float), draws.normal(size=(3, 2, 30))
    found = sweep_values(sets, scores, labels, draw_counts(30, draws, resamples=2))
    for place in range(3):
        expected = np.mean([roc_auc_score(labels[c], scores[place, c]) for c in range(2)])
        assert found.values[place, 0] == pytest.approx(expected)
