"""Before a study: how much noise a budget asks for, what each round will have cost, and what the noise leaves to be learnt.

Every answer takes what was spent already, so that a site whose ledger is not empty gets its own answer. The noise is chosen
so that the gate (`epsilon_rdp`) lets all rounds pass.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from panfm.errors import ConfigError
from panfm.privacy.accounting import Budget, NoisySteps, epsilon_prv, epsilon_rdp
from panfm.privacy.statement import BudgetStatement

_NOISE_STEPS = 1000
"""Noise multipliers are planned in thousandths: a recipe's number that people can read to each other."""
_MOST_NOISE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAfter:
    """What a subject has lost when a round is over."""

    round: int
    rdp: float
    """By the accountant that decides."""
    prv: float | None
    """By the one that reports; None where it cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How far one site's budget reaches."""

    site: str
    budget: Budget
    spent: float
    """Epsilon before the study, at the site's own delta, by the accountant that decides."""
    rounds: int
    """Rounds that it can take part in."""
    out_in_round: int | None
    """The first round that it has to refuse; None: it can take part in all."""


def fits(budget: Budget, history: Iterable[NoisySteps]) -> bool:
    """Whether a history stays within a budget: the one rule by which a round is let through, planned and charged."""
    return epsilon_rdp(history, budget.delta) <= budget.epsilon


def noise_multiplier_for(budget: Budget, sampling_rate: float, steps: int, spent: Sequence[NoisySteps] = ()) -> float:
    """The least noise multiplier, in whole thousandths, with which so many steps fit into what is left of a budget.

    Args:
        steps: of all rounds together.
    Raises: ConfigError when no noise is enough, because of what was spent before.
    """

    def is_enough(thousandths: int) -> bool:
        noise = thousandths / _NOISE_STEPS
        planned = NoisySteps(noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps)
        return fits(budget, [*spent, planned])

    enough = 10 * _NOISE_STEPS
    while not is_enough(enough):
        enough *= 2
        if enough > _MOST_NOISE * _NOISE_STEPS or not fits(budget, spent):
            raise ConfigError(
                f"no noise fits {steps} steps into epsilon {budget.epsilon:g}: {epsilon_rdp(spent, budget.delta):.3g} of it "
                "is spent already; plan fewer steps, a smaller sampling rate, or leave the site out"
            )
    return _least(is_enough, enough) / _NOISE_STEPS


def rounds_within(budget: Budget, a_round: NoisySteps, at_most: int, spent: Sequence[NoisySteps] = ()) -> int:
    """How many rounds of these steps fit into what is left of a budget."""

    def is_too_many(rounds: int) -> bool:
        return not fits(budget, [*spent, a_round.times(rounds)])

    return at_most if not is_too_many(at_most) else _least(is_too_many, at_most) - 1


def outlook(statement: BudgetStatement, a_round: NoisySteps, rounds: int) -> Outlook:
    """How far a site's budget reaches in a study, from what its ledger states."""
    within = rounds_within(statement.budget, a_round, rounds, statement.history)
    return Outlook(
        site=statement.site,
        budget=statement.budget,
        spent=epsilon_rdp(statement.history, statement.budget.delta),
        rounds=within,
        out_in_round=within + 1 if within < rounds else None,
    )


def cost_by_round(
    a_round: NoisySteps, rounds: Sequence[int], delta: float, spent: Sequence[NoisySteps] = ()
) -> tuple[CostAfter, ...]:
    """What has been spent when each of some rounds is over; about half a second a round, for the accountant that reports."""
    histories = {number: [*spent, a_round.times(number)] for number in rounds}
    return tuple(
        CostAfter(round=number, rdp=epsilon_rdp(history, delta), prv=epsilon_prv(history, delta))
        for number, history in histories.items()
    )


def spread_rounds(rounds: int, count: int) -> tuple[int, ...]:
    """At most so many rounds to show of all, the first and the last among them."""
    if rounds <= count:
        return tuple(range(1, rounds + 1))
    return tuple(1 + place * (rounds - 1) // (count - 1) for place in range(count))


def noise_std_of_mean(noise_multiplier: float, denominator: float) -> float:
    """Standard deviation of the noise on each coordinate of a step's mean gradient, in units of the clip norm.

    Args:
        denominator: the public number by which the clipped sum is divided, about the expected sample.
    """
    return noise_multiplier / denominator


def noise_to_signal(noise_multiplier: float, denominator: float, num_parameters: int) -> float:
    """Norm of the noise on a step's mean gradient against the largest norm that the gradient can have, the clip norm.

    Far above 1 a single step is mostly noise, and only what many steps agree on is learnt.
    """
    return noise_std_of_mean(noise_multiplier, denominator) * math.sqrt(num_parameters)


def _least(holds: Callable[[int], bool], known: int) -> int:
    """The least number from 1 for which a condition holds that, once it holds, goes on to hold; it holds for `known`."""
    below, least = 0, known
    while least - below > 1:
        middle = (below + least) // 2
        below, least = (below, middle) if holds(middle) else (middle, least)
    return least
