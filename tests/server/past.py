"""Records of rounds that never were, as short as a test can say them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping

from panfm.reporting.record import Event, RoundFinished, RoundStarted, SiteAnswered, SiteJoined
from server.attendance import ACCEPTED, Attendance


def joined(**organs: str) -> list[Event]:
    """Sites that joined, each with its organs in one string."""
    return [SiteJoined(site=site, organs=held.split(), panfm_version="0") for site, held in organs.items()]


def finished(number: int, votes: Mapping[str, Iterable[str]] | None = None) -> RoundFinished:
    """The end of a round: group -> sites that had a vote."""
    weights = {group: dict.fromkeys(sites, 1.0) for group, sites in (votes or {}).items()}
    return RoundFinished(
        round=number, seconds=1.0, weights=weights, unchanged_groups={}, delta_norm={}, model_digest=""
    )


def answered(
    number: int, site: str, outcome: str = ACCEPTED, seconds: float = 1.0, *, reason: str = "", ledger_head: str = ""
) -> SiteAnswered:
    """What became of one task."""
    return SiteAnswered(
        round=number, site=site, outcome=outcome, seconds=seconds, reason=reason, ledger_head=ledger_head
    )


def a_round(
    number: int, votes: Mapping[str, Iterable[str]] | None = None, seconds: float = 1.0, /, **outcomes: str
) -> list[Event]:
    """A whole round: the sites that were asked with what became of each, and group -> sites that had a vote."""
    answers = [answered(number, site, outcome, seconds) for site, outcome in sorted(outcomes.items())]
    return [RoundStarted(round=number, sites=sorted(outcomes)), *answers, finished(number, votes)]


def attendance(*events: Iterable[Event]) -> Attendance:
    """The attendance after these."""
    noted = Attendance()
    for several in events:
        for event in several:
            noted.note(event)
    return noted
