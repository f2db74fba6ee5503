"""What a run with privacy has cost each site's subjects, by round: the sites' own words, from their own ledgers.

Epsilon is told by each site with its answers; the coordinator can check neither it nor the data behind it. It covers all runs of
the site, so a first round need not begin at 0, and it is spent also where an answer did not count.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from panfm.reporting import palette
from panfm.reporting.history import RunHistory, Series, finite
from panfm.reporting.panels import Line, Panel, small_multiples
from panfm.reporting.tables import DASH, Cell, Row, Table, count, number

_NO_BUDGET = "none told"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """One site's budget and what the run has taken of it."""

    site: str
    epsilon: Series
    """Round -> what a subject had lost by its end, in all runs."""
    budget: float | None
    """The site's own, as it told last; None where it told none."""
    delta: float | None
    ran_out: int | None
    """The first round that the site refused because its budget was spent."""


def spending(history: RunHistory) -> list[Spending]:
    """Every site of a run with privacy that was asked; none of a run without."""
    if not privacy_settings(history):
        return []
    asked = {site for sites in history.asked.values() for site in sites} | {site for _, site in history.answers}
    return [_of_site(history, site) for site in sorted(asked)]


def privacy_settings(history: RunHistory) -> dict[str, Any]:
    """What the recipe says of privacy; empty where it has none."""
    settings = history.settings.get("privacy")
    if not isinstance(settings, Mapping) or settings.get("mode", "none") == "none":
        return {}
    return {str(name): value for name, value in settings.items()}


def privacy_facts(history: RunHistory) -> list[tuple[str, str]]:
    """The recipe's settings of privacy, for people."""
    settings, pretrain = privacy_settings(history), history.settings.get("pretrain")
    if not settings:
        return []
    steps = pretrain.get("steps_per_round") if isinstance(pretrain, Mapping) else None
    names = ("noise_multiplier", "clip_norm", "sampling_rate", "denominator")
    told = [(name.replace("_", " "), number(settings.get(name))) for name in names]
    return [("mode", str(settings["mode"])), *told, ("steps a round", count(steps))]


def spending_table(history: RunHistory) -> Table:
    """Budget, spent and left of each site, and when it ran out."""
    return Table(
        caption="Privacy budget of each site as its own ledger tells it. In bold: it ran out during the run.",
        head=("site", "budget (epsilon)", "delta", "rounds charged", "spent", "left", "ran out"),
        rows=tuple(Row(header=Cell(text=one.site), cells=_cells(one)) for one in spending(history)),
    )


def spending_by_round(history: RunHistory) -> Table:
    """Rounds by sites: epsilon after the round."""
    sites = spending(history)
    return Table(
        caption="Epsilon of each site after each round that it was charged for.",
        head=("round", *(one.site for one in sites)),
        rows=tuple(
            Row(header=Cell(text=str(n)), cells=tuple(Cell(text=number(one.epsilon.get(n))) for one in sites))
            for n in history.rounds
            if sites
        ),
    )


def spending_figure(history: RunHistory) -> Markup:
    """Epsilon of each site over rounds, below its budget."""
    panels = [
        Panel(
            title=one.site,
            colour=palette.ACCENT,
            lines=(
                Line(series=_budget_line(one), colour=palette.MUTED, width=1.0, dashed=True, label="budget"),
                Line(series=one.epsilon, colour=palette.ACCENT, label="spent"),
            ),
        )
        for one in spending(history)
    ]
    words = "Epsilon that each site has spent over rounds, beside its budget"
    return small_multiples(panels, "spending", words, rounds=history.rounds, limits=(0.0, None))


def _of_site(history: RunHistory, site: str) -> Spending:
    answers = [answer for (_, who), answer in history.answers.items() if who == site]
    known = {answer.round: finite(answer.epsilon) for answer in answers}
    charged = [answer for answer in answers if known[answer.round] is not None]
    return Spending(
        site=site,
        epsilon={n: value for n, value in known.items() if value is not None},
        budget=finite(charged[-1].epsilon_budget) if charged else None,
        delta=finite(charged[-1].epsilon_delta) if charged else None,
        ran_out=next((answer.round for answer in answers if answer.is_budget_spent), None),
    )


def _cells(one: Spending) -> tuple[Cell, ...]:
    spent = max(one.epsilon.values(), default=None)
    left = one.budget - spent if one.budget is not None and spent is not None else None
    return (
        Cell(text=_NO_BUDGET if one.budget is None else number(one.budget)),
        Cell(text=number(one.delta)),
        Cell(text=count(len(one.epsilon))),
        Cell(text=number(spent)),
        Cell(text=number(left)),
        Cell(text=DASH if one.ran_out is None else f"in round {one.ran_out}", strong=one.ran_out is not None),
    )


def _budget_line(one: Spending) -> Series:
    return {} if one.budget is None else dict.fromkeys(one.epsilon, one.budget)
