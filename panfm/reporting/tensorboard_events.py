"""A record as TensorBoard event files: `tensorboard --logdir runs` then shows the curves of every run.

The files are written anew from the record's first line whenever following begins, so they never hold a point twice and need
no memory of their own. Where a run went on from an earlier round, TensorBoard is told to forget the later points.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event as Logged
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from panfm.reporting.follow import Entry
from panfm.reporting.record import RunResumed

TENSORBOARD = "tensorboard"
"""Folder below the run's."""

_FILES = "events.out.tfevents.*"


class TensorBoardFollower:
    """Writes the curves of one run into its folder."""

    def __init__(self, run_folder: Path) -> None:
        folder = run_folder / TENSORBOARD
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(_FILES):
            old.unlink()
        self._file = (folder / f"{_FILES[:-1]}{os.getpid()}.panfm").open("wb")
        self._writer = RecordWriter(self._file)
        self._begun = False

    def take(self, entries: Sequence[Entry]) -> None:
        """Add the entries' points."""
        for entry in entries:
            for logged in self._logged(entry):
                self._writer.write(logged.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _logged(self, entry: Entry) -> list[Logged]:
        logged = [] if self._begun else [Logged(wall_time=entry.seconds, file_version="brain.Event:2")]
        self._begun = True
        if isinstance(entry.event, RunResumed):
            restart = SessionLog(status=SessionLog.START)
            logged.append(Logged(wall_time=entry.seconds, step=entry.event.rounds_done + 1, session_log=restart))
        for scalar in entry.scalars:
            value = Summary.Value(tag=scalar.name, simple_value=scalar.value)
            logged.append(Logged(wall_time=entry.seconds, step=scalar.step, summary=Summary(value=[value])))
        return logged
