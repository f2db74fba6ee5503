"""Following a record while it is written: each new whole line is handed on, to TensorBoard, MLflow or whatever draws curves.

A follower reads the record and nothing else, in a process or a thread of its own; should it fail, the run goes on, and
following again from the first line gives the same.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from panfm.errors import DataError
from panfm.reporting.record import SCHEMA, Event, event_of
from panfm.reporting.scalars import Scalar, round_of, scalars_of

RECORD = "record.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a record, with what it adds to the curves."""

    line: int
    """Counted from 1."""
    event: Event
    seconds: float
    """When it was written, since 1970."""
    scalars: tuple[Scalar, ...]


class Follower(Protocol):
    """Whatever takes a record's entries."""

    def take(self, entries: Sequence[Entry]) -> None:
        """Take some entries, in order; when this returns they can be seen."""

    def close(self) -> None:
        """Take no more."""


class RecordTail:
    """The end of a record that grows; remembers how far it has read."""

    def __init__(self, run_folder: Path) -> None:
        self._path = run_folder / RECORD
        self._offset, self._line, self._round = 0, 0, 0

    def new_entries(self) -> list[Entry]:
        """The entries of all whole lines since the last call; a half-written line waits for its end.

        Raises: DataError when a line is damaged, was written by a newer schema, or the record has become shorter.
        """
        return list(self._read(self._new_bytes()))

    def _new_bytes(self) -> bytes:
        if not self._path.is_file():
            return b""
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._offset:
                raise DataError(f"{self._path} has become shorter: another run has its place; follow it anew")
            file.seek(self._offset)
            content = file.read()
        return content[: content.rfind(b"\n") + 1]

    def _read(self, content: bytes) -> Iterator[Entry]:
        for line in content.splitlines(keepends=True):
            self._offset += len(line)
            self._line += 1
            if line.strip():
                yield from self._entry(line)

    def _entry(self, line: bytes) -> Iterator[Entry]:
        try:
            values = json.loads(line)
            newer = values["schema"] > SCHEMA
            event = None if newer else event_of(values)
            seconds = datetime.fromisoformat(values["time"]).timestamp()
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self._path.name} line {self._line} is damaged; restore the file from a copy") from error
        if newer:
            raise DataError(f"{self._path.name} was written by a newer panfm (schema {values['schema']}); update panfm")
        if event is not None:
            self._round = round_of(event) or self._round
            yield Entry(line=self._line, event=event, seconds=seconds, scalars=tuple(scalars_of(event, self._round)))
