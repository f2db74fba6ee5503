"""What a report says of privacy: each site's budget, what it has spent, and who ran out when."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from panfm.reporting.history import history_of
from panfm.reporting.record import Event, RoundStarted, RunStarted, SiteAnswered, event_of
from panfm.reporting.run_report import write_run_report
from panfm.reporting.scalars import scalars_of
from panfm.reporting.spending import spending

WriteRecord = Callable[..., Path]
PRIVACY = """privacy:
  mode: dp_full
  clip_norm: 1.0
  noise_multiplier: 1.25
  sampling_rate: 0.05
  denominator: 16.0
pretrain:
  steps_per_round: 25
"""
SPENT = "budget_spent: the site has spent the privacy budget of its policy"


def _start(recipe: str = PRIVACY) -> RunStarted:
    return RunStarted(
        run="r",
        recipe=recipe,
        seed=0,
        rounds=3,
        panfm_version="",
        torch_version="",
        flower_version="",
        group_parameters={},
    )


def _charged(number: int, site: str, epsilon: float, outcome: str = "accepted", reason: str = "") -> SiteAnswered:
    return SiteAnswered(
        round=number,
        site=site,
        outcome=outcome,
        reason=reason,
        epsilon=epsilon,
        epsilon_delta=1e-5,
        epsilon_budget=3.0,
        ledger_head=f"{'ab' * 32}:{number}",
    )


def _refused(number: int, site: str, reason: str = SPENT) -> SiteAnswered:
    return SiteAnswered(round=number, site=site, outcome="refused", reason=reason)


def _run() -> list[Event]:
    return [
        _start(),
        *(RoundStarted(round=n, sites=["north", "open", "poor"]) for n in (1, 2, 3)),
        _charged(1, "north", 0.5),
        SiteAnswered(round=1, site="open", outcome="accepted"),
        _charged(1, "poor", 2.9),
        _charged(2, "north", 0.75, "left_out", "did 3 steps"),
        _refused(2, "poor"),
        _charged(3, "north", 1.0),
    ]


def test_every_site_has_its_budget_its_spending_and_the_round_in_which_it_ran_out() -> None:
    north, unlimited, poor = spending(history_of(_run(), name="tried"))
    assert (north.budget, north.delta, north.ran_out) == (3.0, 1e-5, None)
    assert north.epsilon == {1: 0.5, 2: 0.75, 3: 1.0}, "also of an answer that did not count"
    assert (unlimited.site, unlimited.budget, unlimited.epsilon) == ("open", None, {})
    assert (poor.epsilon, poor.ran_out) == ({1: 2.9}, 2)


def test_other_refusals_are_none_of_the_budget() -> None:
    told: list[Event] = [_start(), _refused(1, "a", "hours: not now"), replace(_refused(2, "a"), outcome="failed")]
    assert [one.ran_out for one in spending(history_of(told, name="tried"))] == [None]


def test_the_page_shows_what_is_spent_and_left(write_record: WriteRecord, read_page: Callable[[Path], Any]) -> None:
    page = read_page(write_run_report(write_record(_run())))
    shown = page.table("Privacy budget of each site")
    columns = ("budget (epsilon)", "delta", "rounds charged", "spent", "left", "ran out")
    assert [shown["north"][name] for name in columns] == ["3.00", "1.00e-05", "3", "1.00", "2.00", "\u2013"]
    assert [shown["poor"][name] for name in columns] == ["3.00", "1.00e-05", "1", "2.90", "0.100", "in round 2"]
    assert [shown["open"][name] for name in columns] == ["none told", "\u2013", "0", "\u2013", "\u2013", "\u2013"]
    by_round = page.table("Epsilon of each site after each round")
    assert [by_round[n]["north"] for n in "123"] == ["0.500", "0.750", "1.00"]
    assert "mode dp_full, noise multiplier 1.25, clip norm 1.00, sampling rate 0.0500, denominator 16.0" in page.words
    trouble = next(rows for caption, rows in page.tables.items() if caption.startswith("What did not count"))
    assert ["poor", "refused", "2", SPENT] in trouble


@pytest.mark.parametrize("recipe", ["", "privacy: {mode: none}", "privacy: 3", "privacy: [mode]", ": no yaml"])
def test_a_run_without_privacy_says_nothing_of_it(
    recipe: str, write_record: WriteRecord, read_page: Callable[[Path], Any]
) -> None:
    page = read_page(write_run_report(write_record([_start(recipe), *_run()[1:]])))
    assert not [caption for caption in page.tables if "rivacy" in caption or "psilon" in caption]
    assert not [attributes for _, attributes in page.tags if attributes.get("id") == "privacy"]


def test_a_number_that_is_none_hides_no_other() -> None:
    odd: Sequence[Event] = [_start(), _charged(1, "a", float("nan")), _charged(2, "a", 1.0)]
    assert spending(history_of(odd, name="tried"))[0].epsilon == {2: 1.0}


def test_epsilon_is_a_curve_where_it_is_told() -> None:
    names = {
        scalar.name: scalar.value for event in _run() for scalar in scalars_of(event, 0) if "epsilon" in scalar.name
    }
    assert names == {"epsilon/north": 1.0, "epsilon/poor": 2.9}


def test_records_from_before_privacy_are_read() -> None:
    event = event_of({"event": "site_answered", "round": 1, "site": "a", "outcome": "accepted"})
    assert isinstance(event, SiteAnswered)
    assert (event.epsilon, event.epsilon_budget, event.ledger_head) == (None, None, "")
