"""Plans against published and measured numbers, and against the gate that they must pass."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_prv, epsilon_rdp
from panfm.privacy.planning import (
    Outlook,
    cost_by_round,
    fits,
    noise_multiplier_for,
    noise_std_of_mean,
    noise_to_signal,
    outlook,
    rounds_within,
    spread_rounds,
)
from panfm.privacy.statement import BudgetStatement

BUDGET = Budget(epsilon=8.0, delta=1e-5)
ROUND = NoisySteps(noise_multiplier=1.2524, sampling_rate=0.05, steps=25)


# (subjects, expected sample, epsilon, noise multiplier, noise of the mean gradient): 1000 steps at delta 1e-5, measured with
# Opacus' own search by its numerical accountant. The gate is Renyi's, and asks for up to a tenth more.
MEASURED = [
    (60, 16, 8.0, 5.14, 0.321),
    (200, 16, 8.0, 1.70, 0.106),
    (1000, 64, 3.0, 2.96, 0.046),
]


@pytest.mark.parametrize(("subjects", "sample", "epsilon", "noise", "of_mean"), MEASURED)
def test_noise_for_a_budget_is_what_was_measured(
    subjects: int, sample: int, epsilon: float, noise: float, of_mean: float
) -> None:
    measured = NoisySteps(noise_multiplier=noise, sampling_rate=sample / subjects, steps=1000)
    assert epsilon_prv([measured], 1e-5) == pytest.approx(epsilon, abs=0.03)
    assert noise_std_of_mean(noise, sample) == pytest.approx(of_mean, rel=0.03)
    found = noise_multiplier_for(Budget(epsilon=epsilon, delta=1e-5), sample / subjects, 1000)
    assert noise < found < 1.1 * noise
    assert noise_to_signal(found, sample, 10_000) == pytest.approx(100 * found / sample)


def test_planned_noise_is_the_least_that_fits() -> None:
    noise = noise_multiplier_for(BUDGET, 0.05, 1000)
    assert noise == pytest.approx(1.2524, abs=0.002)
    assert fits(BUDGET, [NoisySteps(noise_multiplier=noise, sampling_rate=0.05, steps=1000)])
    assert not fits(BUDGET, [NoisySteps(noise_multiplier=noise - 0.001, sampling_rate=0.05, steps=1000)])


def test_what_was_spent_asks_for_more_noise_and_may_ask_for_too_much() -> None:
    fresh = noise_multiplier_for(BUDGET, 0.05, 500)
    assert noise_multiplier_for(BUDGET, 0.05, 500, [ROUND.times(10)]) > fresh
    with pytest.raises(ConfigError, match="no noise fits 500 steps into epsilon 8: 9"):
        noise_multiplier_for(BUDGET, 0.05, 500, [ROUND.times(50)])


@settings(max_examples=15, deadline=None)
@given(st.floats(0.5, 12), st.integers(0, 60))
def test_rounds_within_a_budget_are_the_most_that_fit(epsilon: float, spent: int) -> None:
    budget, history = Budget(epsilon=epsilon, delta=1e-5), [ROUND.times(spent)] if spent else []
    rounds = rounds_within(budget, ROUND, 100, history)
    assert rounds == 0 or fits(budget, [*history, ROUND.times(rounds)])
    assert rounds == 100 or not fits(budget, [*history, ROUND.times(rounds + 1)])


def test_outlook_names_the_round_in_which_a_site_runs_out() -> None:
    def of(site: str, *history: NoisySteps) -> Outlook:
        return outlook(BudgetStatement(site=site, budget=BUDGET, history=history), ROUND, 40)

    north, south, west = of("north"), of("south", ROUND.times(12)), of("west", ROUND.times(90))
    assert (north.rounds, north.out_in_round, north.spent) == (40, None, 0.0)
    assert south.out_in_round == south.rounds + 1 == 29
    assert (west.rounds, west.out_in_round) == (0, 1)
    assert west.spent > 8


def test_cost_by_round_rises_to_the_whole_by_both_accountants() -> None:
    rounds = spread_rounds(40, 3)
    costs = cost_by_round(ROUND, rounds, 1e-5)
    assert [cost.round for cost in costs] == [1, 20, 40]
    assert [cost.rdp for cost in costs] == sorted(cost.rdp for cost in costs)
    assert costs[-1].rdp == pytest.approx(8.0, abs=0.01) == epsilon_rdp([ROUND] * 40, 1e-5)
    assert costs[-1].prv == pytest.approx(7.33, abs=0.1)


@given(st.integers(1, 500), st.integers(2, 20))
def test_rounds_to_show_begin_and_end_with_the_study(rounds: int, count: int) -> None:
    shown = spread_rounds(rounds, count)
    assert (shown[0], shown[-1], len(shown)) == (1, rounds, min(rounds, count))
    assert list(shown) == sorted(set(shown))
