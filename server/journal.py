"""What a record says of a run that somebody goes on with: which of its events stand, and how far the open round had come.

The record is the one truth, so all of this is a function of its events. A round is open from its start until its model is on
disk; every verdict on an answer stands from the moment it was written, and so does the set of answers that the average
stands on. A process that takes over asks only the sites on whose answers nothing was said.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile

from panfm.reporting.record import (
    AnswersAccepted,
    Event,
    RoundStarted,
    RunResumed,
    SiteAnswered,
)
from server.attendance import ACCEPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """A round without a model, as far as the record knows it."""

    number: int
    asked: tuple[str, ...] = ()
    """Sites whose tasks went out; empty when the round had not begun."""
    answers: Mapping[str, SiteAnswered] = field(default_factory=dict)
    """Site -> the verdict that stands."""
    accepted: Mapping[str, str] | None = None
    """Site -> digest of the update, once the set was closed: these answers and no others count."""

    def unanswered(self) -> tuple[str, ...]:
        """Sites that were asked, and on whose answers nothing was said; nobody once the set was closed."""
        return () if self.accepted is not None else tuple(site for site in self.asked if site not in self.answers)

    def updates(self) -> dict[str, str]:
        """Site -> digest of the update that counts as far as is known."""
        if self.accepted is not None:
            return dict(self.accepted)
        found = {site: answer.update_digest for site, answer in sorted(self.answers.items())}
        return {site: digest for site, digest in found.items() if digest}


def standing(events: Iterable[Event]) -> list[Event]:
    """The events that stand, in order.

    A process that took over from round n made void what was said of rounds after n, except what was judged in round n + 1.
    """
    stand: list[Event] = []
    for event in events:
        if isinstance(event, RunResumed):
            stand = [earlier for earlier in stand if _stands(earlier, event.rounds_done)]
        stand.append(event)
    return stand


def open_round(events: Iterable[Event], number: int) -> OpenRound:
    """How far a round had come, when the model of the round before it is taken over."""
    found = OpenRound(number=number)
    for event in events:
        if getattr(event, "round", None) != number:
            continue
        if isinstance(event, RoundStarted):  # a second one asks more sites, for too few came back
            found = replace(found, asked=tuple(event.sites))
        elif isinstance(event, SiteAnswered):
            found = replace(found, answers={**found.answers, event.site: event})
        elif isinstance(event, AnswersAccepted):
            found = replace(found, accepted=event.updates)
    return found


def collapsed_in_a_row(events: Iterable[Event], rounds_done: int) -> int:
    """Rounds in a row, the last one done among them, in which sites collapsed and no answer was accepted."""
    answers: dict[int, dict[str, SiteAnswered]] = {}
    for event in events:
        if isinstance(event, SiteAnswered):
            answers.setdefault(event.round, {})[event.site] = event
    rounds = takewhile(lambda number: all_collapsed(answers.get(number, {}).values()), range(rounds_done, 0, -1))
    return len(list(rounds))


def all_collapsed(answers: Iterable[SiteAnswered]) -> bool:
    """Whether sites collapsed in a round, and no answer was accepted."""
    judged = list(answers)
    return any(answer.collapsed for answer in judged) and all(answer.outcome != ACCEPTED for answer in judged)


def _stands(event: Event, rounds_done: int) -> bool:
    number = getattr(event, "round", 0)
    judged = isinstance(event, RoundStarted | SiteAnswered | AnswersAccepted)
    return number <= rounds_done or (judged and number == rounds_done + 1)
