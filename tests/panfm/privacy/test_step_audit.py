"""The bounds against closed forms and another accountant; the audit against a mechanism that does what it claims, or lies."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from panfm.privacy.accounting import epsilon_prv, gaussian_release
from panfm.privacy.contract import Make, Trainer
from panfm.privacy.step_audit import StepPlan, epsilon_of_mu, judged, step_audit
from tests.panfm.privacy.gaussian_sum import GaussianSum

PLAN = StepPlan()
SHAPES = {"heart": (2, 2, 2), "liver": (2, 2, 2)}


@pytest.mark.parametrize("noise", [0.7, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("delta", [1e-6, 1e-5, 1e-3])
def test_epsilon_of_mu_is_the_numerical_accountants(noise: float, delta: float) -> None:
    expected = epsilon_prv([gaussian_release(noise)], delta)
    assert expected is not None
    assert 0 <= expected - epsilon_of_mu(1 / noise, delta) <= 0.015  # it gives its upper bound, 0.01 above its estimate


def test_epsilon_of_mu_is_the_measured_one() -> None:
    """Noise multiplier 1 is epsilon 4.38 at delta 1e-5 (dp-accounting 0.6, privacy loss distributions)."""
    assert epsilon_of_mu(1.0, 1e-5) == pytest.approx(4.38, abs=0.005)
    assert epsilon_of_mu(0.0, 1e-5) == 0.0


@given(st.floats(0.01, 10.0), st.floats(0.01, 10.0), st.sampled_from([1e-9, 1e-5, 1e-3]))
def test_epsilon_grows_with_mu(one: float, other: float, delta: float) -> None:
    low, high = sorted((one, other))
    assert epsilon_of_mu(low, delta) <= epsilon_of_mu(high, delta) + 1e-9


@given(st.integers(1, PLAN.releases - 1), st.integers(1, PLAN.releases - 1))
def test_bounds_lie_below_what_the_counts_show(with_it: int, without: int) -> None:
    """The plain frequencies, without any doubt, show at least as much."""
    found = judged(with_it, without, PLAN)
    hit, false_alarm = with_it / PLAN.releases, without / PLAN.releases
    shown = (math.log(hit / false_alarm), math.log((1 - false_alarm) / (1 - hit)))
    assert found.mu_at_least <= max(0.0, stats.norm.ppf(hit) - stats.norm.ppf(false_alarm))
    assert found.at_least <= max(0.0, *shown)


@pytest.mark.parametrize("beyond", [0, PLAN.releases])
def test_counts_that_tell_nothing_show_nothing(beyond: int) -> None:
    found = judged(beyond, beyond, PLAN)
    assert (found.at_least, found.mu_at_least, found.mu_epsilon) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("with_it", "without"), [(700, 300), (1000, 12), (999, 0)])
def test_bounds_are_those_of_another_library(with_it: int, without: int) -> None:
    intervals = [
        stats.binomtest(count, PLAN.releases).proportion_ci(1 - PLAN.doubt, method="exact")
        for count in (with_it, without)
    ]
    expected = stats.norm.ppf(intervals[0].low) - stats.norm.ppf(intervals[1].high)
    assert judged(with_it, without, PLAN).mu_at_least == pytest.approx(expected, rel=1e-6)


def test_bounds_are_the_closed_forms_where_nothing_is_missed() -> None:
    """All with the subject beyond the middle, none without: each chance is known to within 0.005^(1/n)."""
    found = judged(PLAN.releases, 0, PLAN)
    sure = 0.005 ** (1 / PLAN.releases)
    assert found.at_least == pytest.approx(np.log((sure - PLAN.delta) / (1 - sure)), rel=1e-6)
    assert found.mu_at_least == pytest.approx(2 * stats.norm.ppf(sure), rel=1e-6)


def test_expected_counts_give_the_measured_bounds() -> None:
    """The counts that mu 1 leads to give 0.79, as was measured of a correct trainer with n = 1000."""
    beyond = round(PLAN.releases * float(stats.norm.cdf(0.5)))
    assert judged(beyond, PLAN.releases - beyond, PLAN).mu_at_least == pytest.approx(0.79, abs=0.01)


def makes(seed: int, *, times_noise: float = 1.0, times_clip: float = 1.0) -> Make:
    draws = np.random.default_rng(seed)

    def make(clip_norm: float, noise: float) -> Trainer:
        return GaussianSum(draws, clip_norm, noise, times_noise=times_noise, times_clip=times_clip)

    return make


def test_honest_mechanism_passes_and_its_mu_is_nearly_reached() -> None:
    found = step_audit(makes(0), SHAPES, PLAN)
    assert found.breaches() == ()
    assert 0.6 < found.mu_at_least < found.claimed_mu
    assert 0.3 < found.at_least < found.mu_epsilon < found.claimed


@pytest.mark.parametrize(("times_noise", "times_clip"), [(0.7, 1.0), (1.0, 2.0)])
def test_each_lie_is_caught(times_noise: float, times_clip: float) -> None:
    found = step_audit(makes(1, times_noise=times_noise, times_clip=times_clip), SHAPES, PLAN)
    assert "mu" in {breach.question for breach in found.breaches()}


def test_outlier_that_is_not_clipped_is_refused() -> None:
    with pytest.raises(ValueError, match="take a clip norm below it"):
        step_audit(makes(0), SHAPES, StepPlan(clip_norm=1e9))
