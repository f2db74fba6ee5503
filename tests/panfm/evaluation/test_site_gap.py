"""The gap to the worst site, on sites whose scores are made to be known."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

from panfm.evaluation.resampling import draw_counts
from panfm.evaluation.site_gap import site_gap
from panfm.evaluation.targets import Target

SITE_OF = np.repeat([0, 1, 2], 40)
LABEL = np.tile([0.0, 1.0], 60)
TARGET = Target(name="2 disease categories", columns=("cat_a", "cat_b"), is_class=True)
COUNTS = draw_counts(120, np.random.default_rng(0), resamples=50)


def test_the_gap_is_the_mean_of_the_sites_minus_the_worst() -> None:
    perfect = LABEL.copy()
    useless = np.where(SITE_OF == 1, 0.0, perfect)
    found = site_gap(TARGET, {"cat_a": LABEL, "cat_b": LABEL}, {"cat_a": perfect, "cat_b": useless}, COUNTS, SITE_OF)
    assert found is not None
    assert {site: value.value for site, value in found.by_site.items()} == {0: 1.0, 1: 0.75, 2: 1.0}
    assert found.worst == 1
    assert found.gap.value == pytest.approx((1 + 0.75 + 1) / 3 - 0.75)
    assert found.gap.low == found.gap.high == pytest.approx(found.gap.value), "these scores do not vary over subjects"


def test_only_labels_that_all_compared_sites_have_cases_of_count() -> None:
    rare = np.where(SITE_OF == 2, 0.0, LABEL)
    found = site_gap(TARGET, {"cat_a": LABEL, "cat_b": rare}, {"cat_a": LABEL, "cat_b": -LABEL}, COUNTS, SITE_OF)
    assert found is not None
    assert found.columns == ("cat_a",)
    assert found.gap.value == 0


def test_there_is_no_gap_between_fewer_than_two_sites() -> None:
    only = np.where(SITE_OF == 0, LABEL, np.nan)
    assert site_gap(TARGET, {"cat_a": only, "cat_b": only}, {"cat_a": LABEL, "cat_b": LABEL}, COUNTS, SITE_OF) is None
