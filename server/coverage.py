"""What each organ got of a run, and whether that is what the recipe declared: the ground on which a run is called complete.

An organ is covered in a window of rounds by the sites whose training of it counted there, in the mean of its group. An update
that was left out, came late, or was held back for want of other sites covers nothing. Pure: a function of the attendance.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from panfm.config import FederationConfig, Recipe
from server.attendance import ACCEPTED, Attendance, PastRound, Rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganCoverage:
    """What one organ got, in the words of `RunFinished.coverage`."""

    organ: str
    offered_by: int
    """Sites that ever offered it."""
    needed: int
    """Sites that every window needs."""
    fewest: int
    """Sites in the poorest window; 0 where no round was finished."""
    sites: int
    """Sites whose training of it counted in the run."""
    rounds: int
    """Rounds in which any counted."""
    window: int
    """Rounds of a window; 0: all of the run."""


def covered_by(organ: str, rounds: Rounds) -> frozenset[str]:
    """Sites whose training of the organ counted in any of these rounds."""
    return frozenset(site for past in rounds.values() for site in past.votes.get(organ, ()))


def needed(organ: str, attendance: Attendance, coverage: Mapping[str, int]) -> int:
    """Sites that the organ needs in every window: as declared, else one as soon as any site offers it."""
    offered = any(organ in organs for organs in attendance.offered.values())
    return coverage.get(organ, 1 if offered else 0)


def latest_coverage(
    attendance: Attendance, recipe: Recipe, number: int, votes: Mapping[str, Iterable[str]]
) -> dict[str, int]:
    """`RoundFinished.coverage` of the round that is about to be put on record.

    Args:
        number: that round.
        votes: group -> sites with a vote on it in that round; `RoundResult.weights` will do.
    """
    rounds = {**attendance.finished(number), number: PastRound(votes={g: tuple(sites) for g, sites in votes.items()})}
    window = _last(rounds, recipe.federation.participation.window)
    return {organ: len(covered_by(organ, window)) for organ in recipe.organs}


def organ_coverage(attendance: Attendance, recipe: Recipe) -> list[OrganCoverage]:
    """What each organ of the study got in the rounds that are over, in the order of the vocabulary."""
    participation, rounds = recipe.federation.participation, attendance.finished()
    windows = _windows(rounds, participation.window)
    return [
        OrganCoverage(
            organ=organ,
            offered_by=sum(organ in organs for organs in attendance.offered.values()),
            needed=needed(organ, attendance, participation.coverage),
            fewest=min((len(covered_by(organ, window)) for window in windows), default=0),
            sites=len(covered_by(organ, rounds)),
            rounds=sum(organ in past.votes for past in rounds.values()),
            window=participation.window,
        )
        for organ in recipe.organs
    ]


def coverage_rows(attendance: Attendance, recipe: Recipe) -> list[dict[str, Any]]:
    """`RunFinished.coverage`."""
    return [asdict(organ) for organ in organ_coverage(attendance, recipe)]


def shortfall(attendance: Attendance, recipe: Recipe) -> str:
    """What a run whose rounds are over fell short of, in one line; empty when it did what it was to do.

    To be asked once at the end, by whoever decides between `complete` and `incomplete`.
    """
    rounds = attendance.finished()
    if not any(past.votes for past in rounds.values()):
        return "nobody's training counted in any round"
    return "; ".join([*_thin(rounds, recipe.federation), *_uncovered(attendance, recipe)])


def _thin(rounds: Rounds, federation: FederationConfig) -> list[str]:
    """Rounds in which too few answers were accepted."""
    thin = [number for number, past in rounds.items() if _num_accepted(past) < federation.min_sites]
    listed = ", ".join(str(number) for number in thin)
    return [f"fewer than {federation.min_sites} sites were accepted in round {listed}"] if thin else []


def _num_accepted(past: PastRound) -> int:
    return sum(answer.outcome == ACCEPTED for answer in past.answers.values())


def _uncovered(attendance: Attendance, recipe: Recipe) -> list[str]:
    poor = [organ for organ in organ_coverage(attendance, recipe) if organ.fewest < organ.needed]
    untrained = [organ.organ for organ in poor if organ.sites == 0]
    parts = [f"nobody's training of {', '.join(untrained)} counted"] if untrained else []
    return parts + [_too_few(organ) for organ in poor if organ.sites]


def _too_few(organ: OrganCoverage) -> str:
    where = f"some {organ.window} rounds in a row" if organ.window else "the run"
    return f"{organ.organ} was covered by {organ.fewest} of {organ.needed} sites in {where}"


def _windows(rounds: Rounds, window: int) -> list[Rounds]:
    """Every stretch of so many rounds; the whole where it is shorter than that, or `window` is 0."""
    numbers = list(rounds)
    if window == 0 or len(numbers) <= window:
        return [rounds] if rounds else []
    starts = range(len(numbers) - window + 1)
    return [{number: rounds[number] for number in numbers[start : start + window]} for start in starts]


def _last(rounds: Rounds, window: int) -> Rounds:
    return _windows(rounds, window)[-1]
