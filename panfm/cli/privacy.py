"""`panfm privacy`: what a study with differential privacy will cost, whether it can learn anything, and whether its trainer does
what is claimed of it; all before it starts.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.config import Recipe
    from panfm.privacy.accounting import Budget, NoisySteps
    from panfm.privacy.statement import BudgetStatement

privacy = typer.Typer(help="Plan what a study may cost its subjects' privacy; audit its trainer.", no_args_is_help=True)

_SHOWN_ROUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Study:
    """The public numbers of a study with privacy."""

    rounds: int
    steps: int
    rate: float
    denominator: float
    noise: float | None
    """None: the least that fits is looked for."""
    parameters: int
    """That are trained; 0: not told."""


@privacy.command()
def plan(
    epsilon: Annotated[float, typer.Option(help="Budget of each subject, over everything that a site ever answers.")],
    delta: Annotated[float, typer.Option(help="Chance that the bound fails; well below 1 / subjects.")],
    recipe: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[recipe=NAME SETTING=VALUE ...]",
            help="A study as for `panfm simulate`; gives the numbers below that are not given.",
        ),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of the study.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of a site in a round (pretrain.steps_per_round).")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Chance of each subject to be in a step's sample.")] = None,
    denominator: Annotated[
        float | None, typer.Option(help="By which a step's sum is divided, about rate times subjects.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="A noise multiplier to judge; the least that fits the budget if not given.")
    ] = None,
    parameters: Annotated[int | None, typer.Option(min=0, help="Parameters that are trained; 0: not told.")] = None,
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

    given = {"rounds": rounds, "steps": steps, "rate": rate, "denominator": denominator}
    study = _study(given, noise, parameters, recipe or [])
    if not study.denominator > 0:
        raise ConfigError(f"--denominator must be above 0, got {study.denominator}; give about rate times subjects")
    budget = Budget(epsilon=epsilon, delta=delta)
    statements = [read_statement(path) for path in site or ()]
    least = noise_multiplier_for(budget, study.rate, study.rounds * study.steps)
    multiplier = least if study.noise is None else study.noise
    a_round = NoisySteps(noise_multiplier=multiplier, sampling_rate=study.rate, steps=study.steps)
    _say_noise(budget, a_round, study.rounds, least)
    _say_signal(multiplier, study.denominator, study.parameters)
    shown = tuple(range(1, study.rounds + 1)) if every_round else spread_rounds(study.rounds, _SHOWN_ROUNDS)
    _say_costs(a_round, shown, delta)
    if statements:
        _say_sites(statements, a_round, study.rounds)


@privacy.command()
def audit(
    recipe: Annotated[
        list[str], typer.Argument(metavar="recipe=NAME SETTING=VALUE ...", help="A study, as for `panfm simulate`.")
    ],
) -> None:
    """Measure what the study's trainer tells of made-up subjects, beside what is claimed of it. Costs nobody's budget."""
    from panfm import recipes
    from panfm.errors import RunError
    from panfm.pretrain.private_audit import audit_recipe
    from panfm.randomness import stream

    composed = recipes.recipe_of(recipes.load(recipe))
    if not composed.privacy.is_on:
        raise ConfigError("the recipe has no privacy to audit; add privacy.mode=dp_adapters or privacy.mode=dp_full")
    plan, found = audit_recipe(composed, stream(composed.seed, "privacy audit"))
    steps = plan.steps
    print(
        f"audited    {composed.privacy.mode.value}: {plan.num_canaries} made-up subjects, {steps.steps} steps at rate "
        f"{steps.sampling_rate:g}, noise {steps.noise_multiplier:g}"
    )
    print(f"claimed    epsilon {found.claimed:.2f} at delta {plan.delta:g}")
    print(f"shown      epsilon at least {found.at_least:.2f}; wrong with chance {plan.doubt:g}")
    print(
        f"signal     {found.signal:.2f} \N{PLUS-MINUS SIGN} {found.signal_band:.2f} of a clip norm a subject; 1 is right"
    )
    print(f"noise      {found.noise:.3f} \N{PLUS-MINUS SIGN} {found.noise_band:.3f} of what is charged; 1 is right")
    if breaches := found.breaches():
        told = "; ".join(breach.what for breach in breaches)
        raise RunError(
            f"the trainer does not do what is claimed of it: {told}. Train nobody with it, and tell who made it"
        )


def _study(
    given: Mapping[str, float | None], noise: float | None, parameters: int | None, settings: Sequence[str]
) -> _Study:
    """What was given, and for the rest what the recipe says. Raises: ConfigError."""
    found = {name: value for name, value in given.items() if value is not None}
    if settings:
        from panfm import recipes

        composed = recipes.recipe_of(recipes.load(settings))
        told = _told_by(composed)
        noise = composed.privacy.noise_multiplier if noise is None else noise
        parameters = _num_trained(composed) if parameters is None else parameters
        found = told | found
    if missing := [f"--{name}" for name in given if name not in found]:
        raise ConfigError(
            f"a plan needs {', '.join(missing)}, or a recipe with privacy, such as recipe=demo privacy.mode=dp_full"
        )
    return _Study(
        rounds=int(found["rounds"]),
        steps=int(found["steps"]),
        rate=found["rate"],
        denominator=found["denominator"],
        noise=noise,
        parameters=parameters or 0,
    )


def _told_by(recipe: Recipe) -> dict[str, float]:
    if not recipe.privacy.is_on:
        raise ConfigError("the recipe has no privacy to plan; add privacy.mode=dp_adapters or privacy.mode=dp_full")
    return {
        "rounds": recipe.rounds,
        "steps": recipe.pretrain.steps_per_round,
        "rate": recipe.privacy.sampling_rate,
        "denominator": recipe.privacy.denominator,
    }


def _num_trained(recipe: Recipe) -> int:
    """Parameters that a site with all organs of the recipe trains; one with fewer trains fewer."""
    from panfm.models.build import parameter_shapes
    from panfm.pretrain.private_scope import trained_names

    shapes = parameter_shapes(recipe.model, recipe.organs)
    return sum(
        shapes[name].numel() for name in trained_names(shapes, recipe.privacy.mode, recipe, tuple(recipe.organs))
    )


def _say_noise(budget: Budget, a_round: NoisySteps, rounds: int, least: float) -> None:
    from panfm.privacy.planning import rounds_within

    multiplier, work = a_round.noise_multiplier, f"{rounds} rounds of {a_round.steps} steps"
    within = rounds_within(budget, a_round, rounds)
    fit = f"{work} fit" if within == rounds else f"{within} of {work} fit"
    how = "the least, in thousandths" if multiplier == least else "as given"
    print(f"noise multiplier   {multiplier:g}, {how}: {fit} into epsilon {budget.epsilon:g} at delta {budget.delta:g}")
    if multiplier != least:
        print(f"the least for all  {least:g} (privacy.noise_multiplier={least:g})")
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
