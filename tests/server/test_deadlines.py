"""How long a round waits: by what its sites needed before, and never without end."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import FederationConfig, ParticipationConfig
from panfm.reporting.record import Event, RoundStarted
from server.attendance import ACCEPTED, LATE, LEFT_OUT, OVERDUE
from server.deadlines import expected_seconds, is_wedged, round_deadline_s
from tests.server.past import answered, attendance, finished

LONGEST_S = 1000.0


def _federation(factor: float = 4.0, least_s: float = 1.0, late_in_a_row: int = 2) -> FederationConfig:
    return FederationConfig(
        round_deadline_s=LONGEST_S,
        participation=ParticipationConfig(
            deadline_factor=factor, deadline_least_s=least_s, late_in_a_row=late_in_a_row
        ),
    )


def _rounds(**sites: list[tuple[str, float]]) -> list[Event]:
    """Site -> what became of it and its seconds, round by round."""
    events: list[Event] = []
    for number in range(1, max(map(len, sites.values()), default=0) + 1):
        here = {site: told[number - 1] for site, told in sites.items() if len(told) >= number}
        events.append(RoundStarted(round=number, sites=sorted(here)))
        events += [answered(number, site, outcome, seconds) for site, (outcome, seconds) in here.items()]
        events.append(finished(number))
    return events


def _deadline_s(federation: FederationConfig, **sites: list[tuple[str, float]]) -> float:
    return round_deadline_s(sorted(sites), attendance(_rounds(**sites)).finished(), federation)


@pytest.mark.parametrize(
    ("sites", "expected_s"),
    [
        ({"a": [(ACCEPTED, 10.0)], "b": [(ACCEPTED, 30.0)]}, 120.0),  # the slowest counts
        ({"a": [(ACCEPTED, 30.0), (ACCEPTED, 10.0), (LEFT_OUT, 20.0)]}, 120.0),  # in its last three answers
        ({"a": [(ACCEPTED, 99.0), (ACCEPTED, 10.0), (LEFT_OUT, 20.0), (ACCEPTED, 5.0)]}, 80.0),
        ({"a": [(ACCEPTED, 10.0), ("refused", 0.1)]}, 40.0),  # a refusal says nothing of training
        ({"a": [(ACCEPTED, 10.0), (LATE, 40.0)]}, 320.0),  # it needs longer than it was given
        (
            {"a": [(ACCEPTED, 10.0), (OVERDUE, 70.0)]},
            280.0,
        ),  # it came when the round was over, and this is what it took
        ({"a": [(LATE, 40.0), (ACCEPTED, 10.0)]}, 40.0),  # it was slow once, and is not now
        ({"a": [(ACCEPTED, 10.0)], "b": [(LATE, 0.0)]}, LONGEST_S),  # it was gone, and was never measured
        ({"a": [(ACCEPTED, 10.0)], "b": [("failed", 1.0)]}, LONGEST_S),
        ({"a": [(ACCEPTED, 10.0)], "b": [(LATE, 40.0), (LATE, 100.0)]}, 40.0),  # wedged: not waited for any more
        ({"b": [(LATE, 40.0), (LATE, 50.0)]}, 400.0),  # unless nobody else is there
        ({"a": [(ACCEPTED, 600.0)]}, LONGEST_S),
        ({"a": [(ACCEPTED, 0.01)]}, 1.0),
        ({"a": []}, LONGEST_S),
        ({}, LONGEST_S),
    ],
)
def test_deadline_follows_the_slowest_site_that_is_waited_for(
    sites: dict[str, list[tuple[str, float]]], expected_s: float
) -> None:
    assert _deadline_s(_federation(), **sites) == pytest.approx(expected_s)


def test_measured_deadlines_can_be_turned_off() -> None:
    assert _deadline_s(_federation(factor=0.0), a=[(ACCEPTED, 10.0)]) == LONGEST_S


_PAST = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.tuples(st.sampled_from([ACCEPTED, LATE, LEFT_OUT, OVERDUE, "failed"]), st.floats(0, 1e6)), max_size=6),
)


@given(_PAST, st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 3))
def test_no_past_makes_a_round_endless_or_without_time(
    sites: dict[str, list[tuple[str, float]]], factor: float, late_in_a_row: int
) -> None:
    deadline_s = _deadline_s(_federation(factor, least_s=5.0, late_in_a_row=late_in_a_row), **sites)
    assert 5.0 <= deadline_s <= LONGEST_S


def test_a_site_that_became_slow_is_met_within_a_few_rounds() -> None:
    """It answered in 10 s and needs 150 s from then on; each deadline it misses is known to be too short."""
    federation = _federation(late_in_a_row=4)
    told = [(ACCEPTED, 10.0)]
    deadlines_s = []
    for _ in range(4):
        deadlines_s.append(_deadline_s(federation, a=told))
        told.append((ACCEPTED, 150.0) if deadlines_s[-1] >= 150.0 else (LATE, deadlines_s[-1]))
    assert deadlines_s == pytest.approx([40.0, 320.0, 600.0, 600.0])


def test_only_lateness_wedges_a_site() -> None:
    rounds = attendance(
        _rounds(
            late=[(ACCEPTED, 1.0), (LATE, 1.0), (LATE, 1.0)],
            once=[(LATE, 1.0), (ACCEPTED, 1.0), (LATE, 1.0)],
            failing=[("failed", 1.0)] * 3,
            overdue=[(OVERDUE, 9.0)] * 3,
        )
    ).finished()
    settings = ParticipationConfig(late_in_a_row=2)
    assert [s for s in ("late", "once", "failing", "overdue", "new") if is_wedged(s, rounds, settings)] == ["late"]
    assert not is_wedged("late", rounds, ParticipationConfig(late_in_a_row=0))
    assert expected_seconds("new", rounds) is None
