"""The history of a run says what the record says, whatever the record lacks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import DataError
from panfm.organs import SEVEN_ORGANS
from panfm.reporting.history import (
    RunHistory,
    finite,
    held_subjects,
    history_of,
    in_ranges,
    organ_mean,
    organ_series,
    outcome,
    read_history,
    site_troubles,
    unchanged_groups,
)
from panfm.reporting.record import (
    Event,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    SiteAnswered,
    SiteJoined,
    SiteLeft,
)


@pytest.fixture
def run(pretend_run: Callable[..., list[Event]]) -> list[Event]:
    return pretend_run(6, 5)


def history(*events: Event) -> RunHistory:
    return history_of(events, name="tried")


def answer(
    number: int, site: str, subjects: int, lift: float, fate: str = "accepted", reason: str = ""
) -> SiteAnswered:
    return SiteAnswered(
        round=number,
        site=site,
        outcome=fate,
        reason=reason,
        num_subjects=subjects,
        organ_subjects={"brain": subjects},
        metrics={"lift": {"brain": lift}},
    )


def test_mean_of_an_organ_is_weighted_by_subjects_and_leaves_out_what_did_not_count() -> None:
    told = history(
        answer(1, "a", 30, 1.0),
        answer(1, "b", 10, 2.0),
        answer(1, "c", 1000, 50.0, fate="left_out"),
        answer(2, "a", 30, math.nan),
        answer(2, "b", 10, 2.0),
    )
    assert organ_mean(told, "lift", "brain") == {1: (30 * 1.0 + 10 * 2.0) / 40, 2: 2.0}
    assert organ_series(told, "lift", "brain") == {"a": {1: 1.0}, "b": {1: 2.0, 2: 2.0}}


def test_mean_is_plain_where_nobody_tells_subjects() -> None:
    assert organ_mean(history(answer(1, "a", 0, 1.0), answer(1, "b", 0, 2.0)), "lift", "brain") == {1: 1.5}


@pytest.mark.parametrize("value", [None, "0.5", True, math.nan, math.inf, 1e300, {}])
def test_what_is_no_sensible_number_is_missing(value: object) -> None:
    assert finite(value) is None


def test_organs_follow_the_recipe_then_the_groups_and_keep_what_sites_named(run: list[Event]) -> None:
    assert history_of(run, name="").organs == SEVEN_ORGANS
    extra = SiteJoined(site="eye_clinic", organs=["retina"], panfm_version="0.1.0")
    assert history_of([*run, extra], name="").organs == (*SEVEN_ORGANS, "retina")
    assert history(extra, answer(1, "a", 3, 1.0)).organs == ("brain", "retina")


def test_subjects_come_from_the_joining_then_from_training_then_are_not_told() -> None:
    told = history(
        SiteJoined(site="a", organs=["brain"], panfm_version="0", num_subjects={"brain": 9}),
        SiteJoined(site="b", organs=["brain"], panfm_version="0"),
        SiteJoined(site="c", organs=["brain", "liver"], panfm_version="0"),
        answer(1, "a", 5, 1.0),
        answer(1, "b", 7, 1.0),
    )
    assert [held_subjects(told, site, "brain") for site in "abc"] == [9, 7, None]
    assert held_subjects(told, "a", "liver") == 0


def test_a_silent_site_is_named_once_its_round_is_over_and_not_before() -> None:
    asked = RoundStarted(round=1, sites=["a", "b"])
    over = RoundFinished(round=1, seconds=1, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")
    going = history(asked, answer(1, "a", 3, 1.0))
    assert outcome(going, 1, "b") == ""
    assert site_troubles(going) == []
    done = history(asked, answer(1, "a", 3, 1.0), over)
    assert [(t.who, t.what, t.rounds) for t in site_troubles(done)] == [("b", "no answer", (1,))]


def test_troubles_name_every_site_round_and_reason_of_the_record(run: list[Event]) -> None:
    wanted = {(e.site, e.outcome, e.round, e.reason) for e in run if isinstance(e, SiteAnswered) and e.reason}
    told = [t for t in site_troubles(history_of(run, name="")) if t.what != "rejected"]
    assert {(t.who, t.what, number, t.reason) for t in told for number in t.rounds} == wanted
    assert len(wanted) == 4


def test_a_site_that_left_is_named_with_the_rounds_before_which_it_did() -> None:
    (trouble,) = site_troubles(history(SiteLeft(site="a", round=2), SiteLeft(site="a", round=5)))
    assert (trouble.who, trouble.what, trouble.rounds) == ("a", "gone", (2, 5))


def test_equal_reasons_of_a_site_stand_together() -> None:
    late = [answer(n, "a", 3, 1.0, fate="late", reason="no answer in 60 s") for n in (2, 3, 4, 7)]
    (trouble,) = site_troubles(history(*late))
    assert trouble.rounds == (2, 3, 4, 7)


def test_a_number_that_is_none_is_said_and_not_hidden() -> None:
    (trouble,) = site_troubles(history(answer(1, "a", 3, math.nan)))
    assert (trouble.who, trouble.rounds) == ("a", (1,))
    assert "lift" in trouble.reason


def test_groups_that_stayed_come_with_their_reason() -> None:
    average = RoundFinished(
        round=3, seconds=1, weights={}, unchanged_groups={"liver": "nobody"}, delta_norm={}, model_digest=""
    )
    (stayed,) = unchanged_groups(history(average, replace(average, round=4)))
    assert (stayed.who, stayed.rounds, stayed.reason) == ("liver", (3, 4), "nobody")


def test_a_resumed_run_has_no_end_until_it_ends_again_and_the_later_answer_counts(run: list[Event]) -> None:
    begun = next(event for event in run if isinstance(event, RunStarted))
    stopped = RunFinished(status="stopped", reason="by a person", rounds_done=1, seconds=1)
    told = history(begun, answer(1, "a", 3, 1.0), stopped, begun, answer(1, "a", 3, 4.0))
    assert told.finish is None
    assert len(told.starts) == 2
    assert organ_mean(told, "lift", "brain") == {1: 4.0}


def test_a_recipe_that_is_no_yaml_costs_nothing_but_its_settings(run: list[Event]) -> None:
    begun = next(event for event in run if isinstance(event, RunStarted))
    assert history(replace(begun, recipe="a: [b\n${")).settings == {}


@given(st.sets(st.integers(1, 300)))
def test_ranges_name_exactly_the_rounds(rounds: set[int]) -> None:
    named: set[int] = set()
    for part in filter(None, in_ranges(rounds).split(", ")):
        first, _, last = part.partition(" to ")
        named |= set(range(int(first), int(last or first) + 1))
    assert named == rounds


def test_a_folder_without_a_record_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"record\.jsonl"):
        read_history(tmp_path)


@pytest.mark.parametrize("line", ['{"schema": 1, "event": "site_joined"}', '{"event": "run_started"}', "[1]", '"x"'])
def test_a_line_that_is_no_event_is_refused_and_not_a_traceback(tmp_path: Path, line: str) -> None:
    (tmp_path / "record.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError):
        read_history(tmp_path)
