"""The latent factors: right law over the population, and a function of seed and index for one subject."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

from panfm.data.synthetic.factors import (
    AGE_RANGE_YEARS,
    AGE_TO_AGEING,
    FACTORS,
    draw_factors,
    factor_covariance,
    reference_population,
    standardised,
)


def test_the_population_has_the_stated_covariance() -> None:
    _, factors = reference_population()
    assert np.abs(np.cov(factors.T) - factor_covariance()).max() < 0.03  # 20,000 subjects: standard error about .01
    assert np.diag(factor_covariance()) == pytest.approx(np.ones(len(FACTORS)))


def test_ageing_follows_age_and_nothing_else_does_so_directly() -> None:
    ages, factors = reference_population()
    years = standardised(ages)
    assert years.mean() == pytest.approx(0, abs=0.03)
    assert years.std() == pytest.approx(1, abs=0.02)
    ageing = factors[:, FACTORS.index("ageing")]
    assert np.corrcoef(years, ageing)[0, 1] == pytest.approx(AGE_TO_AGEING, abs=0.01)
    given_ageing = np.column_stack([ageing, np.ones(len(ages))])
    left = years - given_ageing @ np.linalg.lstsq(given_ageing, years)[0]
    rest = factors - given_ageing @ np.linalg.lstsq(given_ageing, factors)[0]
    assert np.abs(left @ rest[:, 1:] / len(ages)).max() < 0.03


def test_a_subject_is_a_function_of_seed_and_index() -> None:
    one, again, other, reseeded = (draw_factors(s, i) for s, i in ((3, 7), (3, 7), (3, 8), (4, 7)))
    assert np.array_equal(one.values, again.values)
    assert one.age_years == again.age_years
    assert not np.allclose(one.values, other.values)
    assert not np.allclose(one.values, reseeded.values)
    assert AGE_RANGE_YEARS[0] <= one.age_years <= AGE_RANGE_YEARS[1]
    assert one.is_male == (one.values[FACTORS.index("sex")] == 1.0)


def test_subjects_drawn_one_by_one_follow_the_population() -> None:
    drawn = np.array([draw_factors(11, i).values for i in range(2000)])
    assert np.abs(drawn.mean(axis=0)).max() < 0.1  # 4 standard errors of a mean of 2,000
    assert np.abs(np.cov(drawn.T) - factor_covariance()).max() < 0.12
