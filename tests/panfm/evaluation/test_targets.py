"""What is asked of a cohort: nothing on a handful of cases, classes apart from numbers, and means over groups."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np

from panfm.evaluation.targets import FEWEST_CASES, headline, is_askable, is_class, not_asked, targets_of

HALF = np.array([0.0, 1.0] * FEWEST_CASES)


def test_a_macro_average_is_over_what_can_be_asked() -> None:
    rare = HALF.copy()
    rare[1] = np.nan
    fit = {"age": 50 + np.arange(10.0), "cat_a": HALF, "cat_b": HALF, "cat_rare": HALF, "dx_x": HALF, "sex": HALF}
    test = {"age": 60 + np.arange(10.0), "cat_a": HALF, "cat_b": HALF, "cat_rare": rare, "dx_x": HALF, "weight": HALF}
    found = {target.name: target for target in targets_of(fit, test)}
    assert list(found) == ["2 disease categories", "1 single diseases", "age", "cat_a", "cat_b", "dx_x"]
    assert found["2 disease categories"].columns == ("cat_a", "cat_b")
    assert not found["age"].is_class
    assert [target.name for target in headline(tuple(found.values()))] == ["2 disease categories", "1 single diseases"]
    assert not_asked(fit, test) == ("cat_rare", "sex", "weight")


def test_without_groups_every_class_is_a_headline() -> None:
    columns = {"sex": HALF, "age": np.arange(10.0), "smoker": HALF}
    assert [target.name for target in headline(targets_of(columns, columns))] == ["sex", "smoker"]


def test_unknown_values_count_for_neither_side() -> None:
    assert is_class(np.array([0.0, np.nan, 1.0]))
    assert not is_class(np.array([0.0, 1.0, 2.0]))
    assert not is_askable(np.full(30, np.nan))
    assert not is_askable(np.ones(30))
    assert not is_askable(np.full(30, 7.0))
    assert is_askable(np.arange(30.0))
