"""How long a round waits: a few times as long as its slowest site needed before, and never longer than the recipe allows.

A site that was late has shown only that it needs longer than it was given, so it is expected to need twice that; one that was
late several times in a row is expected no more, for a wedged site must not hold up the others. Pure: a function of the
attendance.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection

from panfm.config import FederationConfig, ParticipationConfig
from server.attendance import ACCEPTED, LATE, LEFT_OUT, OVERDUE, Answered, Rounds, misses_in_a_row

MEASURED_ROUNDS = 3
"""A site is expected to need what it needed in the slowest of its last few answered rounds."""

LATE_FACTOR = 2.0
"""A late site is expected to need this many times what it was given; so the deadline of a site that became slow grows fast
enough to meet it within a few rounds."""


def round_deadline_s(sites: Collection[str], rounds: Rounds, federation: FederationConfig) -> float:
    """How long a round that asks these sites waits for them (seconds); at most `federation.round_deadline_s`.

    Args:
        sites: those that are asked.
        rounds: `Attendance.finished` before the round.
    """
    participation, longest_s = federation.participation, federation.round_deadline_s
    waited_for = [site for site in sites if not is_wedged(site, rounds, participation)]
    expected_s = [expected_seconds(site, rounds) for site in waited_for or sites]
    measured_s = [seconds for seconds in expected_s if seconds is not None]
    if participation.deadline_factor == 0 or not measured_s or len(measured_s) < len(expected_s):
        return longest_s
    wanted_s = participation.deadline_factor * max(measured_s)
    return min(longest_s, max(wanted_s, participation.deadline_least_s))


def expected_seconds(site: str, rounds: Rounds) -> float | None:
    """What the site is expected to need from being asked to having answered; None while it has not been measured."""
    late_s: list[float] = []
    answered_s: list[float] = []
    for answer in _latest_first(site, rounds):
        if answer.outcome == LATE and answer.seconds > 0 and not answered_s:  # 0: it was not even there to be asked
            late_s.append(LATE_FACTOR * answer.seconds)
        elif answer.outcome in (ACCEPTED, LEFT_OUT, OVERDUE):
            answered_s.append(answer.seconds)
        if len(answered_s) == MEASURED_ROUNDS:
            break
    return max([*late_s, *answered_s], default=None)


def is_wedged(site: str, rounds: Rounds, participation: ParticipationConfig) -> bool:
    """Whether the site was late so often in a row that it is not waited for any more."""
    patience = participation.late_in_a_row
    return patience > 0 and misses_in_a_row(site, rounds, frozenset({LATE})) >= patience


def _latest_first(site: str, rounds: Rounds) -> list[Answered]:
    return [past.answers[site] for past in reversed(rounds.values()) if site in past.answers]
