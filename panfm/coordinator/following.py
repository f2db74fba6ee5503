"""Following a run from outside: its record is told as it grows, whatever process writes it, until the run is over.

Whoever follows only reads, so it may end and begin again at any time; the run does not notice.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from panfm.coordinator.submissions import KEEPER, is_over, submissions, was_given_up
from panfm.errors import RunError
from panfm.reporting.follow import RecordTail
from panfm.reporting.record import Event, RunFinished, end_of
from panfm.reporting.telling import Line, line_about

POLL_S = 1.0


def follow_run(run_folder: Path, tell: Callable[[Line], None], skip: int = 0) -> RunFinished:
    """Tell the record from its beginning, then as it grows; returns its end.

    Args:
        skip: events at the beginning that are not told.
    Raises: RunError when the run ends incomplete, or was given up.
    """
    tail, events, taken_up = RecordTail(run_folder), list[Event](), len(submissions(run_folder))
    while True:
        events += [entry.event for entry in tail.new_entries()]
        for line in filter(None, map(line_about, events[skip:])):
            tell(line)
        skip = max(skip, len(events))
        handed = submissions(run_folder)
        for again in (one for one in handed[taken_up:] if one.by == KEEPER and one.run_id):
            words = f"the coordinator's program was gone; the run was taken up again after round {again.rounds_done}"
            tell(Line(words, is_trouble=True))
        taken_up = len(handed)
        if is_over(events, handed):
            return _outcome(run_folder, events)
        if was_given_up(handed):
            raise RunError(
                f"the run {run_folder.name} was taken up again and again and got no further than round "
                f"{handed[-1].rounds_done}; the coordinator's logs say why. Mend that, then: resume={run_folder.name}"
            )
        time.sleep(POLL_S)


def _outcome(run_folder: Path, events: list[Event]) -> RunFinished:
    end = end_of(events)
    assert end is not None
    if end.status not in ("complete", "stopped"):
        raise RunError(f"the run {run_folder.name} is {end.status}: {end.reason}")
    return end
