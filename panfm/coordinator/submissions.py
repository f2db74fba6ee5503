"""What was handed to Flower for a run: which of Flower's runs it is now, who asked, and how far it had come by then.

Flower knows nothing of resuming: each time that a run is taken up again it is another run to Flower. This list, in the run's own
folder, is what ties them together, and what tells the keeper that trying again no longer helps.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

from panfm.reporting.record import Event, RoundFinished, end_of

SUBMISSIONS_FILE = "submissions.jsonl"
PERSON, KEEPER = "person", "keeper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One time that a run was handed to Flower."""

    run_id: str
    """Flower's; empty where the keeper gave up instead."""
    by: str
    """person or keeper."""
    at: str
    events: int
    """On record by then."""
    rounds_done: int
    """By then."""


def submissions(run_folder: Path) -> list[Submission]:
    """All of a run, in order; a half-written last line is left out."""
    try:
        lines = (run_folder / SUBMISSIONS_FILE).read_text().split("\n")
    except FileNotFoundError:
        return []
    return [Submission(**json.loads(line)) for line in lines[:-1]]


def note(run_folder: Path, submission: Submission) -> None:
    """Add one; when this returns it is on disk."""
    with (run_folder / SUBMISSIONS_FILE).open("a") as file:
        file.write(json.dumps(asdict(submission)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rounds_done(events: Sequence[Event]) -> int:
    """The latest round that stands on record as finished."""
    return max((event.round for event in events if isinstance(event, RoundFinished)), default=0)


def is_over(events: Sequence[Event], handed: Sequence[Submission]) -> bool:
    """Whether the run came to an end of any kind, and nobody had it taken up since."""
    return end_of(events) is not None and len(events) > (handed[-1].events if handed else 0)


def tries_in_vain(events: Sequence[Event], handed: Sequence[Submission]) -> int:
    """How often in a row the keeper took the run up without a further round coming of it."""
    done = rounds_done(events)
    return len(list(takewhile(lambda one: one.by == KEEPER and one.rounds_done == done, reversed(handed))))


def was_given_up(handed: Sequence[Submission]) -> bool:
    """Whether the keeper tries no more, until a person resumes the run."""
    return bool(handed) and not handed[-1].run_id
