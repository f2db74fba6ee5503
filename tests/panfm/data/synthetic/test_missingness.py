"""Missing organs: the same rate under each mechanism, and only MNAR knows who is ill."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from panfm.config import Missingness
from panfm.data.synthetic.factors import draw_factors, reference_population, standardised
from panfm.data.synthetic.missingness import calibrate, severity
from panfm.errors import ConfigError
from panfm.organs import SEVEN_ORGANS

SUBJECTS = 1500
MECHANISMS = tuple(Missingness)
ORGAN_SETS = (SEVEN_ORGANS, ("liver", "spleen"), ("heart", "adipose", "kidney"))


@cache
def people() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ages (n,) and factors (n, 9)."""
    drawn = [draw_factors(31, i) for i in range(SUBJECTS)]
    return np.array([person.age_years for person in drawn]), np.array([person.values for person in drawn])


@cache
def absent(mechanism: Missingness, organs: tuple[str, ...], rate: float) -> NDArray[np.bool_]:
    """Which organs each subject lacks, (n, organs)."""
    model = calibrate(mechanism, organs, rate)
    kept = [model.present(31, i, draw_factors(31, i)) for i in range(SUBJECTS)]
    return np.array([[organ not in present for organ in organs] for present in kept])


@pytest.mark.parametrize("organs", ORGAN_SETS)
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_each_organ_is_missing_at_the_asked_rate(mechanism: Missingness, organs: tuple[str, ...]) -> None:
    rates = absent(mechanism, organs, 0.3).mean(axis=0)
    assert np.abs(rates - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 * (1 / SUBJECTS + 1 / 20_000))


@settings(deadline=None, max_examples=8)
@given(
    mechanism=st.sampled_from(MECHANISMS),
    organs=st.sampled_from(ORGAN_SETS),
    rate=st.floats(0.02, 0.45),
)
def test_the_redraw_is_in_the_calibration(mechanism: Missingness, organs: tuple[str, ...], rate: float) -> None:
    model = calibrate(mechanism, organs, rate)
    chances = model.chances(*reference_population())
    rng = np.random.default_rng(0)
    missing = rng.random(chances.shape) < chances
    while (again := missing.all(axis=1)).any():
        missing[again] = rng.random((int(again.sum()), len(organs))) < chances[again]
    assert np.abs(missing.mean(axis=0) - rate).max() < 4.5 * np.sqrt(rate * (1 - rate) / len(chances))


def _correlation(mechanism: Missingness, organ: str, driver: NDArray[np.float64]) -> float:
    gone = absent(mechanism, SEVEN_ORGANS, 0.3)[:, SEVEN_ORGANS.index(organ)]
    return float(np.corrcoef(gone, driver)[0, 1])


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_what_each_mechanism_knows(organ: str) -> None:
    chance = 4 / np.sqrt(SUBJECTS)
    ages, factors = people()
    ill, years = severity(organ, factors), standardised(ages)
    assert _correlation(Missingness.mnar, organ, ill) > 0.3
    assert _correlation(Missingness.mar, organ, years) > 0.3
    assert abs(_correlation(Missingness.mcar, organ, ill)) < chance
    assert abs(_correlation(Missingness.mcar, organ, years)) < chance


def test_given_age_mar_knows_nothing_of_severity() -> None:
    ages, factors = people()
    ill, years = severity("liver", factors), standardised(ages)
    residual = ill - np.corrcoef(ill, years)[0, 1] * years
    assert abs(_correlation(Missingness.mar, "liver", residual)) < 4 / np.sqrt(SUBJECTS)


def test_severity_has_unit_variance() -> None:
    for organ in SEVEN_ORGANS:
        assert severity(organ, reference_population()[1]).std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_subject_keeps_an_organ(mechanism: Missingness) -> None:
    model = calibrate(mechanism, ("liver", "spleen"), 0.45)
    assert all(model.present(31, i, draw_factors(31, i)) for i in range(300))


def test_a_site_of_one_organ_and_a_rate_of_zero_are_complete() -> None:
    person = draw_factors(31, 0)
    assert calibrate(Missingness.mnar, ("liver",), 0.45).present(31, 0, person) == ("liver",)
    assert calibrate(Missingness.mnar, SEVEN_ORGANS, 0.0).present(31, 0, person) == SEVEN_ORGANS


def test_a_rate_that_cannot_be_held_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"0 to 0\.5 .* 2 organs.*got 0\.6; lower it"):
        calibrate(Missingness.mcar, ("liver", "spleen"), 0.6)
    with pytest.raises(ConfigError, match="too near its limit"):
        calibrate(Missingness.mnar, ("liver", "spleen"), 0.4999999)
