"""What stands of a record when somebody goes on with its run; a slow reading of the record is the oracle."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from panfm.reporting.record import (
    AnswersAccepted,
    Event,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteAnswered,
    SiteJoined,
    end_of,
    start_of,
)
from server.journal import OpenRound, all_collapsed, collapsed_in_a_row, open_round, standing


def _started(number: int, *sites: str) -> RoundStarted:
    return RoundStarted(round=number, sites=list(sites))


def _answered(number: int, site: str, outcome: str = "accepted", collapsed: bool = False) -> SiteAnswered:
    digest = f"{site}-{number}" if outcome == "accepted" else ""
    return SiteAnswered(round=number, site=site, outcome=outcome, update_digest=digest, collapsed=collapsed)


def _finished(number: int) -> RoundFinished:
    return RoundFinished(
        round=number, seconds=1.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest=str(number)
    )


def _resumed(rounds_done: int) -> RunResumed:
    return RunResumed(run="r", rounds_done=rounds_done, panfm_version="", torch_version="", flower_version="")


START = RunStarted(
    run="r", recipe="", seed=0, rounds=9, panfm_version="", torch_version="", flower_version="", group_parameters={}
)
END = RunFinished(status="incomplete", reason="", rounds_done=1, seconds=1.0)
JOINED = SiteJoined(site="a", organs=["brain"], panfm_version="")


def test_round_that_had_not_begun() -> None:
    assert open_round([START, _started(1, "a"), _finished(1)], 2) == OpenRound(number=2)
    assert OpenRound(number=2).unanswered() == ()
    assert OpenRound(number=2).updates() == {}


def test_verdicts_of_an_open_round_stand_and_the_others_are_asked() -> None:
    found = open_round(
        [
            _started(1, "a"),
            _answered(1, "a"),
            _finished(1),
            _started(2, "a", "b", "c", "d"),
            _answered(2, "c"),
            _answered(2, "a", "refused"),
        ],
        2,
    )
    assert found.asked == ("a", "b", "c", "d")
    assert found.unanswered() == ("b", "d")
    assert found.updates() == {"c": "c-2"}
    assert found.accepted is None


def test_closed_set_asks_nobody_and_counts_nobody_else() -> None:
    events: list[Event] = [_started(1, "a", "b", "c"), _answered(1, "a"), _answered(1, "b")]
    found = open_round([*events, AnswersAccepted(round=1, updates={"a": "a-1"})], 1)
    assert found.unanswered() == ()
    assert found.updates() == {"a": "a-1"}
    assert open_round([*events, AnswersAccepted(round=1, updates={})], 1).updates() == {}


def test_later_word_on_a_site_counts() -> None:
    events: list[Event] = [_started(1, "a"), _answered(1, "a", "failed"), _answered(1, "a")]
    assert open_round(events, 1).updates() == {"a": "a-1"}


def test_older_checkpoint_makes_later_rounds_void_but_not_what_was_judged_in_the_next() -> None:
    judged: list[Event] = [_started(2, "a"), _answered(2, "a"), AnswersAccepted(round=2, updates={"a": "a-2"})]
    before: list[Event] = [START, JOINED, _started(1, "a"), _answered(1, "a"), _finished(1), *judged]
    later: list[Event] = [_finished(2), _started(3, "a"), _answered(3, "a")]
    resumed = _resumed(1)
    assert standing([*before, *later, resumed]) == [*before, resumed]
    assert standing([*before, *later]) == [*before, *later]


def test_an_end_is_one_until_somebody_goes_on() -> None:
    assert end_of([START, END, JOINED]) == END
    assert end_of([START, END, _resumed(1), JOINED]) is None
    assert end_of([START]) is None
    assert end_of([]) is None
    assert start_of([JOINED, START, END]) == START
    assert start_of([JOINED]) is None


def test_collapse_is_counted_from_the_last_round_backwards() -> None:
    def rounds(*collapsed: bool) -> list[Event]:
        return [_answered(n, "a", "left_out" if c else "accepted", c) for n, c in enumerate(collapsed, start=1)]

    assert collapsed_in_a_row(rounds(True, False, True, True), 4) == 2
    assert collapsed_in_a_row(rounds(True, False, True, True), 3) == 1
    assert collapsed_in_a_row(rounds(True, True, False), 3) == 0
    assert collapsed_in_a_row([], 0) == 0
    mixed = [_answered(1, "a", "left_out", True), _answered(1, "b")]
    assert not all_collapsed(mixed)
    assert all_collapsed([mixed[0], _answered(1, "c", "refused")])
    assert not all_collapsed([_answered(1, "c", "refused")])


EVENTS = st.one_of(
    st.builds(_started, st.integers(1, 4), st.sampled_from("ab")),
    st.builds(_answered, st.integers(1, 4), st.sampled_from("ab"), st.sampled_from(["accepted", "failed"])),
    st.builds(_finished, st.integers(1, 4)),
    st.builds(_resumed, st.integers(0, 3)),
    st.just(JOINED),
)


def _slowly(events: Sequence[Event]) -> list[Event]:
    """Each event by itself: does any later resume make it void?"""

    def stands(place: int) -> bool:
        event = events[place]
        number = getattr(event, "round", 0)
        for later in events[place + 1 :]:
            if not isinstance(later, RunResumed) or number <= later.rounds_done:
                continue
            if number > later.rounds_done + 1 or isinstance(event, RoundFinished):
                return False
        return True

    return [event for place, event in enumerate(events) if stands(place)]


@given(st.lists(EVENTS, max_size=25))
def test_what_stands_agrees_with_the_slow_reading(events: list[Event]) -> None:
    assert standing(events) == _slowly(events)


@given(st.lists(EVENTS, max_size=25), st.integers(0, 3))
def test_reading_in_two_steps_changes_nothing(events: list[Event], rounds_done: int) -> None:
    """What a process found that took over, and was killed, is what the next one finds."""
    once = standing([*events, _resumed(rounds_done)])
    assert standing([*standing(events), _resumed(rounds_done)]) == once
    again = standing([*events, _resumed(rounds_done), _resumed(rounds_done)])
    assert open_round(again, rounds_done + 1) == open_round(once, rounds_done + 1)
