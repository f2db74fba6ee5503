"""What the record says of each site's past rounds: who joined, was asked, answered in what time, and had a vote.

It is a fold over the record's events and over nothing else, so a coordinator that died goes on with the same memory. The
choice of sites may read who was asked and what counted, but no measured time: two runs of one seed then ask the same sites
on a fast machine and on a slow one. Only deadlines read times.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from panfm.reporting.record import Event, RoundFinished, RoundStarted, RunResumed, SiteAnswered, SiteJoined

ACCEPTED, LEFT_OUT, LATE, OVERDUE = "accepted", "left_out", "late", "overdue"
"""Words of `SiteAnswered.outcome`: what came and counted, what came and did not, what did not come in time, and what came when
its round was over."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one site's task."""

    outcome: str
    seconds: float
    """What it took: from sending to answer, or the site's own training time where that is longer (an answer from the site's
    store comes at once, and says nothing of the next round)."""
    ledger_head: str = ""
    """Of the site's privacy ledger with this answer in it; empty where it told none."""


@dataclass(slots=True, kw_only=True)
class PastRound:
    """One round, as far as it is on record."""

    asked: tuple[str, ...] = ()
    answers: dict[str, Answered] = field(default_factory=dict)
    """Site -> its answer; after a resume the later one."""
    votes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Group -> sites whose update counted in its mean; only groups that changed."""
    finished: bool = False


Rounds = dict[int, PastRound]
"""Round -> what happened in it, in order."""


class Attendance:
    """The past of one run, by round and site; `note` is the only way in which it changes."""

    def __init__(self) -> None:
        self._rounds: Rounds = {}
        self._offered: dict[str, tuple[str, ...]] = {}
        self._spent: set[str] = set()

    def note(self, event: Event) -> None:
        """Take one event of the record into account; kinds that say nothing of attendance are passed over."""
        if isinstance(event, SiteJoined):
            ever = (*self._offered.get(event.site, ()), *event.organs)
            self._offered[event.site] = tuple(dict.fromkeys(ever))
            self._spent.discard(event.site)
        elif isinstance(event, RunResumed):
            self._go_back_to(event.rounds_done)
        elif isinstance(event, RoundStarted):
            self._round(event.round).asked = tuple(event.sites)
        elif isinstance(event, SiteAnswered):
            self._round(event.round).answers[event.site] = Answered(event.outcome, _seconds(event), event.ledger_head)
            if event.is_budget_spent:
                self._spent.add(event.site)
        elif isinstance(event, RoundFinished):
            past = self._round(event.round)
            past.votes = {group: tuple(sorted(weights)) for group, weights in event.weights.items()}
            past.finished = True

    @property
    def offered(self) -> Mapping[str, tuple[str, ...]]:
        """Site -> organs of the study that it ever offered, for every site that ever joined."""
        return self._offered

    @property
    def spent(self) -> frozenset[str]:
        """Sites that said since they last joined that their privacy budget is spent. Nothing but their own policy can change
        that, so they are not asked again; a person who changed it starts the site anew, and it joins."""
        return frozenset(self._spent)

    def finished(self, before: int | None = None) -> Rounds:
        """Round -> what happened in it, in order, for rounds that are over.

        Args:
            before: only rounds below this one; None: all.
        """
        rounds = sorted(self._rounds.items())
        return {number: past for number, past in rounds if past.finished and (before is None or number < before)}

    def begun(self, number: int) -> tuple[str, ...]:
        """Sites that an earlier process asked in a round that it did not live to finish; empty where there is none."""
        past = self._rounds.get(number)
        return past.asked if past is not None and not past.finished else ()

    def voted(self, site: str, before: int) -> dict[str, int]:
        """Group -> last round before `before` in which the site's update had a vote on it: `TrainTask.voted`."""
        return {
            group: number
            for number, past in self.finished(before).items()
            for group, voters in past.votes.items()
            if site in voters
        }

    def ledger_witness(self, site: str, before: int) -> str:
        """The newest head of the site's privacy ledger in rounds below `before` that are over: `TrainTask.ledger_witness`."""
        past = (past.answers.get(site) for past in self.finished(before).values())
        heads = [answer.ledger_head for answer in past if answer is not None and answer.ledger_head]
        return heads[-1] if heads else ""

    def _go_back_to(self, rounds_done: int) -> None:
        """What stood after the checkpoint that was taken over is void, but the answers to the next round."""
        goes_on = self._rounds.get(rounds_done + 1, PastRound())
        self._rounds = {number: past for number, past in self._rounds.items() if number <= rounds_done}
        self._rounds[rounds_done + 1] = PastRound(asked=goes_on.asked, answers=goes_on.answers)

    def _round(self, number: int) -> PastRound:
        return self._rounds.setdefault(number, PastRound())


def attendance_of(events: Iterable[Event]) -> Attendance:
    """The attendance that a record tells, read one event at a time."""
    attendance = Attendance()
    for event in events:
        attendance.note(event)
    return attendance


def misses_in_a_row(site: str, rounds: Rounds, outcomes: frozenset[str] | None = None) -> int:
    """How often the site, in the last rounds in which it was asked, did not contribute.

    Args:
        rounds: `Attendance.finished`.
        outcomes: what counts as a miss; None: everything but an accepted answer.
    """
    misses = 0
    for past in reversed(rounds.values()):
        if site not in past.asked:
            continue
        outcome = past.answers[site].outcome if site in past.answers else LATE
        if outcome == ACCEPTED or (outcomes is not None and outcome not in outcomes):
            break
        misses += 1
    return misses


def last_asked(site: str, rounds: Rounds) -> int:
    """The last round in which the site was asked; 0 when it never was."""
    return next((number for number, past in reversed(rounds.items()) if site in past.asked), 0)


def times_asked(site: str, rounds: Rounds) -> int:
    """In how many rounds the site was asked."""
    return sum(site in past.asked for past in rounds.values())


def _seconds(event: SiteAnswered) -> float:
    trained = event.metrics.get("seconds")
    return max(event.seconds, float(trained)) if isinstance(trained, int | float) else event.seconds
