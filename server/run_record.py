"""The writer of a run's record: append-only, one line an event, flushed before the run goes on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

from panfm.reporting.record import Event, to_line

RECORD_FILE = "record.jsonl"


class RunRecord:
    """Appends events to `record.jsonl` in a run's folder."""

    def __init__(self, run_folder: Path) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self._path = run_folder / RECORD_FILE

    def write(self, event: Event) -> None:
        """Append one event; when this returns it is on disk."""
        with self._path.open("a") as file:
            file.write(to_line(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
