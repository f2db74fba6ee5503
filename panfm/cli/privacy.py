"""`panfm privacy`: what a study with differential privacy will cost, and whether it can learn anything, before it starts."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.privacy.accounting import Budget, NoisySteps
    from panfm.privacy.statement import BudgetStatement

privacy = typer.Typer(help="Plan what a study may cost its subjects' privacy.", no_args_is_help=True)

_SHOWN_ROUNDS = 8


@privacy.callback()
def _group() -> None:
    """Keeps `plan` a word of its own while it is the only one."""


@privacy.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Budget of each subject, over everything that a site ever answers.")],
    delta: Annotated[float, typer.Option(help="Chance that the bound fails; well below 1 / subjects.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the study.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of a site in a round (pretrain.steps_per_round).")],
    rate: Annotated[float, typer.Option(help="Chance of each subject to be in a step's sample.")],
    denominator: Annotated[float, typer.Option(help="By which a step's sum is divided, about rate times subjects.")],
    noise: Annotated[
        float | None, typer.Option(help="A noise multiplier to judge; the least that fits the budget if not given.")
    ] = None,
    parameters: Annotated[int, typer.Option(min=0, help="Parameters that are trained; 0: not told.")] = 0,
    site: Annotated[
        list[Path] | None,
        typer.Option(help="A site's statement, as `panfm site ledger --statement` prints it. Repeatable."),
    ] = None,
    every_round: Annotated[bool, typer.Option("--every-round", help="Show every round, not a few of them.")] = False,
) -> None:
    """Say the noise that a budget needs, what it leaves to be learnt, what each round costs, and which sites run out when."""
    from panfm.privacy.accounting import Budget, NoisySteps
    from panfm.privacy.planning import noise_multiplier_for, spread_rounds
    from panfm.privacy.statement import read_statement

    if not denominator > 0:
        raise ConfigError(f"--denominator must be above 0, got {denominator}; give about rate times subjects")
    budget = Budget(epsilon=epsilon, delta=delta)
    statements = [read_statement(path) for path in site or ()]
    multiplier = noise_multiplier_for(budget, rate, rounds * steps) if noise is None else noise
    a_round = NoisySteps(noise_multiplier=multiplier, sampling_rate=rate, steps=steps)
    _say_noise(budget, a_round, rounds, is_given=noise is not None)
    _say_signal(multiplier, denominator, parameters)
    shown = tuple(range(1, rounds + 1)) if every_round else spread_rounds(rounds, _SHOWN_ROUNDS)
    _say_costs(a_round, shown, delta)
    if statements:
        _say_sites(statements, a_round, rounds)


def _say_noise(budget: Budget, a_round: NoisySteps, rounds: int, *, is_given: bool) -> None:
    from panfm.privacy.planning import rounds_within

    multiplier, work = a_round.noise_multiplier, f"{rounds} rounds of {a_round.steps} steps"
    within = rounds_within(budget, a_round, rounds)
    fit = f"{work} fit" if within == rounds else f"{within} of {work} fit"
    least = "as given" if is_given else "the least, in thousandths"
    print(
        f"noise multiplier   {multiplier:g}, {least}: {fit} into epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    )
    print("unit               a subject, with all organs and visits: added, removed, or replaced by a null record")


def _say_signal(multiplier: float, denominator: float, parameters: int) -> None:
    from panfm.privacy.planning import noise_std_of_mean, noise_to_signal

    std = noise_std_of_mean(multiplier, denominator)
    print(f"noise of a step    {std:.3g} clip norms on each coordinate of the mean gradient")
    if parameters:
        ratio = noise_to_signal(multiplier, denominator, parameters)
        print(f"noise to signal    {ratio:.3g}: over {parameters:,} parameters, to a gradient of the full clip norm")


def _say_costs(a_round: NoisySteps, rounds: tuple[int, ...], delta: float) -> None:
    from rich.console import Console

    from panfm.cli.tables import numbers_table, shown_epsilon
    from panfm.privacy.planning import cost_by_round

    rows = [
        (str(cost.round), f"{cost.rdp:.2f}", shown_epsilon(cost.prv)) for cost in cost_by_round(a_round, rounds, delta)
    ]
    table = numbers_table(("after round", "epsilon (RDP, decides)", "epsilon (PRV, tighter)"), rows)
    Console(highlight=False).print("", table)


def _say_sites(statements: list[BudgetStatement], a_round: NoisySteps, rounds: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from panfm.cli.tables import numbers_table
    from panfm.privacy.planning import outlook

    rows = []
    for statement in sorted(statements, key=lambda statement: statement.site):
        found = outlook(statement, a_round, rounds)
        out = "never" if found.out_in_round is None else f"in round {found.out_in_round}"
        budget = f"{found.budget.epsilon:g} at {found.budget.delta:g}"
        rows.append((escape(found.site), budget, f"{found.spent:.2f}", str(found.rounds), out))
    table = numbers_table(("site", "its budget", "spent before", "rounds", "runs out"), rows)
    Console(highlight=False).print("", table)
