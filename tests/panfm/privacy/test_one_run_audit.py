"""The bound against closed forms and simulated guesses; the audit against a mechanism that is what it claims, or a known lie."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.privacy.accounting import NoisySteps
from panfm.privacy.contract import Trainer
from panfm.privacy.one_run_audit import (
    Canaries,
    MakeWithCanaries,
    OneRunPlan,
    bound_of_scores,
    epsilon_at_least,
    one_run_audit,
    p_value,
)
from tests.panfm.privacy.gaussian_sum import SIZE, GaussianSum

EPSILONS = st.floats(0.0, 6.0)


def slow_p_value(num_canaries: int, guesses: int, correct: int, odds: int, delta: Fraction) -> Fraction:
    """The source's implementation with fractions, at epsilon = log(odds)."""
    right, wrong = Fraction(odds, odds + 1), Fraction(1, odds + 1)
    chances = [math.comb(guesses, n) * right**n * wrong ** (guesses - n) for n in range(guesses + 1)]
    worst = max(
        (sum(chances[correct - i : correct], start=Fraction(0)) / i for i in range(1, correct + 1)), default=Fraction(0)
    )
    return min(Fraction(1), sum(chances[correct:], start=Fraction(0)) + 2 * num_canaries * delta * worst)


@pytest.mark.parametrize(("guesses", "correct"), [(1, 0), (1, 1), (12, 7), (30, 30), (30, 24), (80, 61)])
@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10**5), Fraction(1, 100)])
@pytest.mark.parametrize("odds", [1, 3, 20])
def test_p_value_is_that_of_the_paper(guesses: int, correct: int, delta: Fraction, odds: int) -> None:
    expected = float(slow_p_value(100, guesses, correct, odds, delta))
    assert p_value(100, guesses, correct, math.log(odds), float(delta)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("guesses", [10, 50, 1000])
def test_all_right_gives_the_closed_form(guesses: int) -> None:
    """With q = e^epsilon / (1 + e^epsilon), all are right with chance q^guesses."""
    chance = 0.05 ** (1 / guesses)
    found = epsilon_at_least(guesses, guesses, guesses, 0.0, 0.05)
    assert found == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


@given(st.integers(1, 200), st.data(), EPSILONS, EPSILONS, st.sampled_from([0.0, 1e-5, 1e-3]))
def test_p_value_grows_with_epsilon_and_falls_with_right_guesses(
    guesses: int, data: st.DataObject, one: float, other: float, delta: float
) -> None:
    correct = data.draw(st.integers(1, guesses))
    low, high = sorted((one, other))
    slack = 1e-9
    assert p_value(200, guesses, correct, low, 0.0) <= p_value(200, guesses, correct, high, 0.0) + slack
    assert p_value(200, guesses, correct, high, delta) >= p_value(200, guesses, correct, high, 0.0) - slack
    assert p_value(200, guesses, correct, high, 0.0) <= p_value(200, guesses, correct - 1, high, 0.0) + slack


@given(st.integers(1, 200), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_bound_is_where_the_doubt_is_reached(guesses: int, data: st.DataObject, delta: float) -> None:
    correct = data.draw(st.integers(0, guesses))
    found = epsilon_at_least(200, guesses, correct, delta, 0.05)
    assert found == 0.0 or p_value(200, guesses, correct, found, delta) < 0.05
    assert p_value(200, guesses, correct, found + 1e-3, delta) >= 0.05


def test_no_guess_about_randomised_response_proves_more_than_is_true() -> None:
    """The tightest mechanism there is, at epsilon 1, and 400 bounds with a doubt of 5 %: about 20 may be too high."""
    draws, chance = np.random.default_rng(0), 1 / (1 + math.exp(-1.0))
    bounds = []
    for _ in range(400):
        is_in = draws.random(200) < 0.5
        told = is_in == (draws.random(200) < chance)
        bounds.append(bound_of_scores(told + 1e-6 * draws.random(200), is_in, 0.0, 0.05))
    assert sum(bound > 1.0 for bound in bounds) <= 36
    assert np.median(bounds) > 0.5


PLAN = OneRunPlan()


def makes(seed: int, *, times_noise: float = 1.0, times_clip: float = 1.0) -> MakeWithCanaries:
    draws = np.random.default_rng([seed, 1])

    def make(clip_norm: float, noise: float, canaries: Canaries) -> Trainer:
        return GaussianSum(draws, clip_norm, noise, canaries, times_noise=times_noise, times_clip=times_clip)

    return make


@pytest.mark.parametrize("seed", range(3))
def test_honest_mechanism_passes(seed: int) -> None:
    found = one_run_audit(makes(seed), [], np.random.default_rng(seed), PLAN)
    assert found.breaches() == ()
    assert 0 <= found.at_least < found.claimed
    assert 2 < found.claimed < 3


@pytest.mark.parametrize(
    ("times_noise", "times_clip", "caught"),
    [
        (1.0, math.inf, {"bound", "signal"}),
        (1.0, 2.0, {"signal"}),
        (0.7, 1.0, {"noise"}),
    ],
)
def test_each_lie_is_caught(times_noise: float, times_clip: float, caught: set[str]) -> None:
    make = makes(7, times_noise=times_noise, times_clip=times_clip)
    found = one_run_audit(make, [], np.random.default_rng(7), PLAN)
    assert caught <= {breach.question for breach in found.breaches()}


def test_more_epsilon_than_claimed_is_proved_where_it_is_much_more() -> None:
    """Nine tenths of the noise left out, by the bound alone: what was claimed was 2 to 3."""
    found = one_run_audit(makes(3, times_noise=0.1), [], np.random.default_rng(3), PLAN)
    assert found.at_least > found.claimed


def test_more_canaries_than_numbers_is_refused() -> None:
    plan = OneRunPlan(num_canaries=SIZE + 1)
    with pytest.raises(ValueError, match=f"there are {SIZE}"):
        one_run_audit(makes(0), [], np.random.default_rng(0), plan)


def test_signal_follows_the_rate() -> None:
    """Canaries that are drawn by another rate than is claimed stand out by that much."""
    told = OneRunPlan(steps=NoisySteps(noise_multiplier=0.5, sampling_rate=0.2, steps=40))
    found = one_run_audit(makes(5), [], np.random.default_rng(5), told)
    assert found.signal == pytest.approx(1.0, abs=5 * found.signal_band)
    assert found.signal_band < 0.1
