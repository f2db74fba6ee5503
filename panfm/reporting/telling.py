"""A run told at a terminal: the few events of a record that a person who waits wants to read, in one line each."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

from panfm.reporting.record import Event, RoundFinished, RunResumed, SiteAnswered, SiteJoined, SiteLeft, SiteRejected


@dataclass(frozen=True, slots=True)
class Line:
    """One line about an event."""

    words: str
    is_trouble: bool = False
    """Whether something is not as it should be."""


def line_about(event: Event) -> Line | None:
    """What to say of an event; None where there is nothing that a person waits for."""
    match event:
        case SiteJoined():
            return Line(f"{event.site} joined with {', '.join(event.organs)}")
        case SiteRejected():
            return Line(f"{event.site} does not take part: {event.reason}", is_trouble=True)
        case SiteLeft():
            return Line(f"{event.site} is no longer connected", is_trouble=True)
        case RunResumed():
            return Line(f"the run goes on after round {event.rounds_done}")
        case SiteAnswered() if event.outcome != "accepted":
            outcome = event.outcome.replace("_", " ")
            return Line(f"round {event.round}: {event.site} {outcome}: {event.reason}", is_trouble=True)
        case RoundFinished():
            return Line(f"round {event.round} finished after {event.seconds:.0f} s")
    return None
