"""Accounting against closed forms, against numbers of another library, and by what composition must do."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib.util
import math
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from panfm.errors import ConfigError
from panfm.privacy.accounting import (
    Budget,
    NoisySteps,
    epsilon_prv,
    epsilon_rdp,
    gaussian_release,
    joint_noise_multiplier,
    merged,
)

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


@pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="dp-accounting is not installed")
@pytest.mark.parametrize("steps", [steps for steps, *_ in OF_ANOTHER_LIBRARY])
def test_sampled_steps_agree_with_dp_accounting(steps: NoisySteps) -> None:
    import dp_accounting  # type: ignore[import-not-found, unused-ignore]
    from dp_accounting.pld import PLDAccountant  # type: ignore[import-not-found, unused-ignore]

    gaussian = dp_accounting.GaussianDpEvent(steps.noise_multiplier)
    event = dp_accounting.PoissonSampledDpEvent(steps.sampling_rate, gaussian)
    accountant = PLDAccountant()
    accountant.compose(event, steps.steps)
    assert epsilon_prv([steps], DELTA) == pytest.approx(accountant.get_epsilon(DELTA), abs=0.03)
    assert epsilon_rdp([steps], DELTA) >= accountant.get_epsilon(DELTA) - 0.005


HISTORY = [entry(1.2, 0.05, 200), entry(2.0, 0.1, 100), entry(1.2, 0.05, 300), gaussian_release(20.0)]


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
