"""The writer of a run's record: append-only, one line an event, flushed before the run goes on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
from pathlib import Path

from panfm.reporting.record import Event, to_line
from server.run_folder import RECORD_FILE


class RunRecord:
    """Appends events to `record.jsonl` in a run's folder; what a killed process left of a line is cut off first."""

    def __init__(self, run_folder: Path) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self._path = run_folder / RECORD_FILE
        _end_with_whole_line(self._path)

    def write(self, event: Event) -> None:
        """Append one event; when this returns it is on disk."""
        with self._path.open("a") as file:
            file.write(to_line(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _end_with_whole_line(path: Path) -> None:
    """Cut a half-written last line: what is appended to one becomes a damaged line that no reader gets past."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        last = content.rpartition(b"\n")[2]
        if not last:
            return
        if _is_whole(last):  # only its newline is missing, and readers have counted it already
            file.write(b"\n")
        else:
            file.truncate(len(content) - len(last))
        file.flush()
        os.fsync(file.fileno())


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
