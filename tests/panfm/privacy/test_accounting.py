"""Accounting against closed forms, against numbers of another library, and by what composition must do."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import norm

from panfm.errors import ConfigError
from panfm.privacy.accounting import (
    ORDERS,
    Budget,
    NoisySteps,
    epsilon_prv,
    epsilon_rdp,
    gaussian_release,
    joint_noise_multiplier,
    merged,
    renyi_curve,
)
from tests.panfm.privacy.second_opinion import epsilon_by_pld, epsilon_by_rdp

DELTA = 1e-5


def entry(noise: float, rate: float, steps: int) -> NoisySteps:
    return NoisySteps(noise_multiplier=noise, sampling_rate=rate, steps=steps)


def exact_epsilon(noises: list[float], delta: float) -> float:
    """Of un-sampled Gaussians, by the analytic formula of Balle and Wang 2018: together they are one with mean mu."""
    mu = math.sqrt(sum(noise**-2 for noise in noises))

    def delta_of(epsilon: float) -> float:
        left, right = norm.logcdf(mu / 2 - epsilon / mu), epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return float(math.exp(left) - math.exp(right))

    return 0.0 if delta_of(0.0) <= delta else float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0, 1000))


@pytest.mark.parametrize("noises", [[10.0] * 100, [3.0, 5.0, 50.0], [0.5] * 4, [80.0]])
def test_gaussians_without_sampling_cost_what_the_closed_form_says(noises: list[float]) -> None:
    history, exact = [gaussian_release(noise) for noise in noises], exact_epsilon(noises, DELTA)
    rdp, prv = epsilon_rdp(history, DELTA), epsilon_prv(history, DELTA)
    assert prv is not None
    assert exact <= prv <= exact + 0.021, "it promises 0.01 on either side"
    assert exact <= rdp <= 1.16 * exact + 0.02


# (history, dp-accounting's PLD accountant under add-or-remove, Opacus' numerical and Renyi accountants), from
# shared measurements with dp-accounting 0.6.0 and opacus 1.6.0.
OF_ANOTHER_LIBRARY = [
    (entry(1.0, 0.05, 1000), 10.99, 11.00, 11.98),
    (entry(2.0, 0.1, 500), 5.56, 5.57, 6.03),
    (entry(10.0, 1.0, 100), 4.38, 4.39, 4.73),
    (entry(0.6, 0.02, 200), 7.26, 7.27, 8.60),
]


@pytest.mark.parametrize(("steps", "pld", "prv", "rdp"), OF_ANOTHER_LIBRARY)
def test_sampled_steps_cost_what_another_library_says(steps: NoisySteps, pld: float, prv: float, rdp: float) -> None:
    found = epsilon_prv([steps], DELTA)
    assert found is not None
    assert pld - 0.005 <= found <= pld + 0.03
    assert found == pytest.approx(prv, abs=0.006)
    assert epsilon_rdp([steps], DELTA) == pytest.approx(rdp, abs=0.006)


@pytest.mark.parametrize(("noise", "rate"), [(0.6, 0.25), (1.0, 0.05), (2.0, 0.5), (8.0, 0.01)])
def test_renyi_curve_is_the_integral_that_defines_it(noise: float, rate: float) -> None:
    """One step's divergence at each order, log E_Q[(P / Q)^order] / (order - 1), by the trapezium rule: at orders below 2, too,
    for which another library gives up."""
    orders = (1.1, 1.5, 1.7, 2.3, 6.0, 40.0)
    x = np.linspace(-15 * noise - 1, 15 * noise + 42, 20_001)
    log_ratio = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    log_q = norm.logpdf(x, scale=noise) + math.log(x[1] - x[0])
    integrals = [float(logsumexp(order * log_ratio + log_q)) / (order - 1) for order in orders]
    curve = dict(zip(ORDERS, renyi_curve(noise, rate), strict=True))
    assert [curve[order] for order in orders] == pytest.approx(integrals, rel=5e-6)


@pytest.mark.parametrize(
    ("noise", "rate"),
    [(0.8, 0.01), (1.0, 0.01), (1.25, 0.05), (2.0, 0.1), (4.0, 0.1), (8.0, 0.25), (40.0, 0.1), (3, 1)],
)
def test_gate_agrees_with_dp_accounting(noise: float, rate: float) -> None:
    """Equal wherever its series converges; where not, its bound is the looser one (here by up to 0.3 %)."""
    for steps in (1, 40, 1000):
        history, deltas = [entry(noise, rate, steps)], (1e-5, 1e-7)
        found = [epsilon_rdp(history, delta) for delta in deltas]
        theirs = epsilon_by_rdp(history, *deltas)
        assert found == pytest.approx(theirs, rel=4e-3)
        assert all(ours <= other * (1 + 1e-9) for ours, other in zip(found, theirs, strict=True))


def _with_slow(fast: set[tuple[float, float, int]]) -> list[ParameterSet]:
    """A grid of plans that cost between 0.02 and 30; all but some of them among the slow tests."""
    plans = product((0.8, 2.0, 8.0), (0.01, 0.1, 0.25), (40, 1000))
    affordable = [plan for plan in plans if plan[0] > 0.8 or plan[1:] not in {(0.1, 1000), (0.25, 1000)}]
    return [pytest.param(*plan, marks=[] if plan in fast else pytest.mark.slow) for plan in affordable]


@pytest.mark.parametrize(("noise", "rate", "steps"), _with_slow({(2.0, 0.01, 1000), (2.0, 0.1, 40), (8.0, 0.1, 1000)}))
def test_both_accountants_bound_what_dp_accounting_finds(noise: float, rate: float, steps: int) -> None:
    """Measured: the report lies 0.0100 to 0.0110 above. The gate's factor is 1.05 to 1.20; only where a rate of 0.01 leaves
    little to spend is it up to 2.01 (0.35 for 0.18), which is 0.75 at most."""
    history, deltas = [entry(noise, rate, steps)], (1e-5, 1e-7)
    for delta, exact in zip(deltas, epsilon_by_pld(history, *deltas), strict=True):
        gate, report = epsilon_rdp(history, delta), epsilon_prv(history, delta)
        assert report is not None
        assert exact <= report <= exact + 0.015
        assert exact <= gate <= max(1.3 * exact, exact + 0.8)


HISTORY = [entry(1.2, 0.05, 200), entry(2.0, 0.1, 100), entry(1.2, 0.05, 300), gaussian_release(20.0)]


def test_heterogeneous_history_costs_what_dp_accounting_finds() -> None:
    """Measured: 5.992 by PLD, 6.002 reported, 6.553 decided by."""
    (exact,), (by_rdp,) = epsilon_by_pld(HISTORY, DELTA), epsilon_by_rdp(HISTORY, DELTA)
    report = epsilon_prv(HISTORY, DELTA)
    assert report is not None
    assert exact <= report <= exact + 0.015
    assert exact <= epsilon_rdp(HISTORY, DELTA) <= 1.1 * exact
    assert epsilon_rdp(HISTORY, DELTA) == pytest.approx(by_rdp, rel=1e-6)


def test_heterogeneous_history_is_between_its_parts_and_their_sum() -> None:
    whole, parts = epsilon_prv(HISTORY, DELTA), [epsilon_prv([part], DELTA) or math.nan for part in merged(HISTORY)]
    assert whole is not None
    assert max(parts) < whole < sum(parts)
    assert whole <= epsilon_rdp(HISTORY, DELTA)


def test_order_and_division_of_a_history_do_not_matter() -> None:
    divided = [entry(1.2, 0.05, 1), *HISTORY[1:], entry(1.2, 0.05, 199)]
    assert merged(divided) == merged(HISTORY)
    assert {epsilon_rdp(order, DELTA) for order in permutations(HISTORY)} == {epsilon_rdp(divided, DELTA)}


def test_question_leaves_the_history_as_it_is() -> None:
    before = tuple(HISTORY)
    assert epsilon_rdp([*HISTORY, entry(0.7, 0.2, 50)], DELTA) > epsilon_rdp(HISTORY, DELTA)
    assert tuple(HISTORY) == before


noises, rates = st.floats(0.5, 200), st.one_of(st.just(1.0), st.floats(1e-4, 1.0))
entries = st.builds(entry, noises, rates, st.integers(1, 500))


@settings(max_examples=3, deadline=None)
@given(st.lists(entries, max_size=2), entries)
def test_epsilon_never_falls(history: list[NoisySteps], more: NoisySteps) -> None:
    before, after = epsilon_rdp(history, DELTA), epsilon_rdp([*history, more], DELTA)
    assert 0 <= before <= after
    assert epsilon_rdp(history, DELTA / 10) >= before


@settings(max_examples=3, deadline=None)
@given(entries)
def test_less_noise_a_larger_sample_and_more_steps_cost_more(steps: NoisySteps) -> None:
    cost = epsilon_rdp([steps], DELTA)
    more_noise = entry(steps.noise_multiplier * 1.5, steps.sampling_rate, steps.steps)
    smaller = entry(steps.noise_multiplier, steps.sampling_rate / 2, steps.steps)
    assert epsilon_rdp([more_noise], DELTA) <= cost
    assert epsilon_rdp([smaller], DELTA) <= cost
    assert cost <= epsilon_rdp([steps.times(2)], DELTA)


@pytest.mark.parametrize(
    "steps", [entry(1.0, 0.9, 60), entry(2.0, 0.05, 5), entry(5.0, 0.2, 1), entry(0.8, 0.9, 5), entry(20.0, 0.05, 20)]
)
def test_accountants_check_each_other(steps: NoisySteps) -> None:
    rdp, prv = epsilon_rdp([steps], DELTA), epsilon_prv([steps], DELTA)
    assert prv is not None
    assert prv <= rdp + 0.021, "it promises 0.01 on either side"
    assert rdp <= 1.2 * prv + 0.1, "a Renyi bound is loose, and not wildly so"


def test_nothing_costs_nothing_and_hopeless_histories_are_said_to_be() -> None:
    assert epsilon_rdp([], DELTA) == 0.0 == epsilon_prv([], DELTA)
    hopeless = [entry(0.3, 0.5, 100)]
    assert epsilon_rdp(hopeless, DELTA) > 300
    assert epsilon_prv(hopeless, DELTA) is None


def test_statistics_of_the_same_samples_are_one_release() -> None:
    joint = joint_noise_multiplier(1.0, 3.0)
    assert joint == pytest.approx(math.sqrt(1 / (1 + 1 / 9)))
    together = epsilon_rdp([entry(joint, 0.05, 500)], DELTA)
    assert together > epsilon_rdp([entry(1.0, 0.05, 500), entry(3.0, 0.05, 500)], DELTA), "apart, sampling counts twice"


@pytest.mark.parametrize(
    ("noise", "rate", "steps"),
    [(0.0, 0.1, 1), (-1.0, 0.1, 1), (math.inf, 0.1, 1), (math.nan, 0.1, 1), (1, 0.0, 1), (1, 1.1, 1), (1, 0.1, 0)],
)
def test_no_privacy_is_no_entry(noise: float, rate: float, steps: int) -> None:
    with pytest.raises(ConfigError):
        entry(noise, rate, steps)


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0.0, 1e-5), (math.inf, 1e-5), (math.nan, 1e-5), (1.0, 0.0), (1.0, 0.1)]
)
def test_budget_that_protects_nobody_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ConfigError):
        Budget(epsilon=epsilon, delta=delta)
