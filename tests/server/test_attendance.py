"""The memory of past rounds: a fold over the record, the same whether it was kept all along or read anew."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm.reporting.record import Event, RoundFinished, RoundStarted, RunResumed, SiteAnswered, read_record
from server.attendance import ACCEPTED, LATE, Answered, attendance_of, last_asked, misses_in_a_row
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from tests.server.past import a_round, answered, attendance, finished, joined

FAILED, REFUSED = "failed", "refused"


def _resumed(rounds_done: int) -> list[Event]:
    return [
        RunResumed(run="r", rounds_done=rounds_done, panfm_version="0", torch_version="0", flower_version="0"),
    ]


def test_rounds_that_are_over_are_told_in_order_and_others_are_not() -> None:
    past = attendance(
        joined(a="brain heart", b="liver"),
        a_round(1, {"brain": ["a"]}, a=ACCEPTED, b=FAILED),
        a_round(2, {"brain": ["a"], "liver": ["b"]}, a=ACCEPTED, b=ACCEPTED),
        [RoundStarted(round=3, sites=["a"]), answered(3, "a")],
    )
    assert past.offered == {"a": ("brain", "heart"), "b": ("liver",)}
    assert list(past.finished()) == [1, 2]
    assert list(past.finished(before=2)) == [1]
    assert past.finished()[1].answers == {"a": Answered(ACCEPTED, 1.0), "b": Answered(FAILED, 1.0)}
    assert past.finished()[2].votes == {"brain": ("a",), "liver": ("b",)}
    assert past.begun(3) == ("a",)
    assert past.begun(2) == past.begun(4) == ()
    past.note(joined(a="heart liver")[0])
    assert past.offered["a"] == ("brain", "heart", "liver"), "what it offered once is not forgotten"


def test_last_vote_of_a_site_on_each_group_is_found() -> None:
    past = attendance(
        a_round(1, {"trunk": ["a", "b"], "brain": ["a"]}, a=ACCEPTED, b=ACCEPTED),
        a_round(2, {"trunk": ["b"]}, a=LATE, b=ACCEPTED),
        a_round(3, {"trunk": ["a"], "heart": ["a"]}, a=ACCEPTED, b=LATE),
    )
    assert past.voted("a", before=4) == {"trunk": 3, "brain": 1, "heart": 3}
    assert past.voted("a", before=3) == {"trunk": 1, "brain": 1}
    assert past.voted("b", before=4) == {"trunk": 2}
    assert past.voted("c", before=4) == {}


def test_what_stood_after_the_checkpoint_is_void_but_answers_to_the_next_round() -> None:
    before = [a_round(n, {"brain": ["a"]}, a=ACCEPTED) for n in (1, 2, 3)]
    past = attendance(*before, _resumed(1))
    assert list(past.finished()) == [1]
    assert past.begun(2) == ("a",)
    assert past.begun(3) == ()
    again = attendance(*before, _resumed(1), a_round(2, {"liver": ["b"]}, b=ACCEPTED))
    assert again.finished()[2].votes == {"liver": ("b",)}
    assert again.finished()[2].answers.keys() == {"a", "b"}, "an answer that was judged stands"
    assert again.voted("a", before=3) == {"brain": 1}


def test_a_stored_answer_is_no_measure_of_speed() -> None:
    """It comes at once; the training that stands behind it is what the next round will take."""
    slow = SiteAnswered(round=1, site="a", outcome=ACCEPTED, seconds=2.0, metrics={"seconds": 500.0})
    silent = SiteAnswered(round=1, site="b", outcome=ACCEPTED, seconds=3.0, metrics={"seconds": "often"})
    past = attendance([slow, silent, finished(1)])
    assert {site: answer.seconds for site, answer in past.finished()[1].answers.items()} == {"a": 500.0, "b": 3.0}


def test_misses_are_counted_over_the_rounds_in_which_the_site_was_asked() -> None:
    rounds = attendance(
        a_round(1, a=ACCEPTED, b=LATE),
        a_round(2, a=LATE, b=LATE),
        a_round(3, b=FAILED),
        a_round(4, a=REFUSED, b=LATE),
        [RoundStarted(round=5, sites=["a"]), finished(5)],
    ).finished()
    assert misses_in_a_row("a", rounds) == 3
    assert misses_in_a_row("a", rounds, frozenset({LATE})) == 1, "asked, and nothing known: late"
    assert misses_in_a_row("b", rounds) == 4
    assert misses_in_a_row("b", rounds, frozenset({LATE})) == 1
    assert misses_in_a_row("c", rounds) == 0
    assert [last_asked(site, rounds) for site in "abc"] == [5, 4, 0]


def test_newest_head_of_a_ledger_is_that_of_rounds_that_are_over() -> None:
    """So that a task that is sent again, by this coordinator or another, has the digest that it had."""
    told: list[list[Event]] = [
        [answered(1, "a", ledger_head="x:1"), answered(1, "b"), finished(1)],
        [answered(2, "a", "left_out", ledger_head="y:4"), finished(2)],
        [answered(3, "a", LATE), finished(3)],
        [answered(4, "a", ledger_head="z:7")],
    ]
    past = attendance(*told)
    assert [past.ledger_witness("a", before=n) for n in range(1, 6)] == ["", "x:1", "y:4", "y:4", "y:4"]
    assert past.ledger_witness("b", before=5) == ""
    assert attendance(*told, _resumed(1)).ledger_witness("a", before=3) == "x:1"


def test_a_budget_is_spent_until_the_site_joins_anew() -> None:
    spent = answered(2, "a", REFUSED, reason="budget_spent: the site has spent the privacy budget of its policy")
    past = attendance(joined(a="brain", b="brain"), [spent])
    assert past.spent == {"a"}
    past.note(answered(2, "b", REFUSED, reason="hours: not now"))
    past.note(answered(2, "b", "left_out", reason="budget_spent: a peer's own words"))
    assert past.spent == {"a"}
    past.note(joined(a="brain")[0])
    assert past.spent == frozenset()


def _any_event() -> st.SearchStrategy[Event]:
    site, number = st.sampled_from("abc"), st.integers(1, 4)
    return st.one_of(
        st.builds(lambda s: joined(**{s: "brain"})[0], site),
        st.builds(RoundStarted, round=number, sites=st.lists(site, unique=True)),
        st.builds(answered, number, site, st.sampled_from([ACCEPTED, LATE, FAILED]), st.floats(0, 9)),
        st.builds(answered, number, site, st.just(REFUSED), reason=st.sampled_from(["", "budget_spent: it is"])),
        st.builds(answered, number, site, ledger_head=st.sampled_from(["", "x:1", "y:2"])),
        st.builds(finished, number, st.dictionaries(st.sampled_from(["trunk", "brain"]), st.lists(site, unique=True))),
        st.builds(lambda n: _resumed(n)[0], st.integers(0, 3)),
    )


def _told(events: list[Event]) -> object:
    past = attendance_of(events)
    voted = {site: past.voted(site, before=9) for site in "abc"}
    return past.offered, past.finished(), [past.begun(n) for n in range(6)], voted, past.spent


@settings(max_examples=40)  # each writes and flushes up to 25 lines
@given(st.lists(_any_event(), max_size=25), st.integers(0, 25))
def test_memory_kept_all_along_is_the_memory_read_anew(
    tmp_path_factory: pytest.TempPathFactory, events: list[Event], cut: int
) -> None:
    """A coordinator that dies anywhere in its record remembers what one that lived does."""
    folder = tmp_path_factory.mktemp("run")
    for part in (events[:cut], events[cut:]):
        record = RunRecord(folder)
        for event in part:
            record.write(event)
    on_disk = list(read_record(folder / RECORD_FILE)) if events else []
    past = record.attendance
    voted = {site: past.voted(site, before=9) for site in "abc"}
    told = past.offered, past.finished(), [past.begun(n) for n in range(6)], voted, past.spent
    assert told == _told(events) == _told(on_disk)


@given(st.lists(_any_event(), max_size=25))
def test_last_votes_are_those_of_the_rounds_that_stand(events: list[Event]) -> None:
    """The slow way: go back over what stands, and look for the site round by round."""
    standing: dict[int, RoundFinished] = {}
    for event in events:
        if isinstance(event, RoundFinished):
            standing[event.round] = event
        elif isinstance(event, RunResumed):
            standing = {number: kept for number, kept in standing.items() if number <= event.rounds_done}
    for site in "abc":
        expected: dict[str, int] = {}
        for number in sorted(standing):
            for group, weights in standing[number].weights.items():
                if site in weights:
                    expected[group] = number
        assert attendance_of(events).voted(site, before=99) == expected
