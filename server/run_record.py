"""The writer of a run's record: append-only, one line an event, flushed before the run goes on.

It also keeps what the events say of attendance, from the first line on: after a resume the memory of past rounds is that of the
record, and no other.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from panfm.reporting.record import Event, read_record, to_line
from server.attendance import Attendance, attendance_of
from server.run_folder import RECORD_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """How a record stood at one moment; as it is only appended to, it must begin so ever after."""

    size_bytes: int
    sha256: str


class RunRecord:
    """Appends events to `record.jsonl` in a run's folder; what a killed process left of a line is cut off first."""

    def __init__(self, run_folder: Path) -> None:
        run_folder.mkdir(parents=True, exist_ok=True)
        self._path = run_folder / RECORD_FILE
        _end_with_whole_line(self._path)
        content = self._path.read_bytes() if self._path.exists() else b""
        self._size_bytes, self._hasher = len(content), hashlib.sha256(content)
        self.attendance: Attendance = attendance_of(read_record(self._path) if self._path.exists() else ())
        """Who was asked, answered and counted, as far as it is on record."""

    def write(self, event: Event) -> None:
        """Append one event; when this returns it is on disk."""
        line = (to_line(event) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size_bytes += len(line)
        self._hasher.update(line)
        self.attendance.note(event)

    def witness(self) -> Witness:
        """How the record stands now."""
        return Witness(size_bytes=self._size_bytes, sha256=self._hasher.hexdigest())

    def begins_with(self, witness: Witness) -> bool:
        """Whether it stood so once."""
        with self._path.open("rb") as file:
            begin = file.read(witness.size_bytes)
        return len(begin) == witness.size_bytes and hashlib.sha256(begin).hexdigest() == witness.sha256


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
