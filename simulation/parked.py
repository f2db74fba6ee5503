"""Messages that wait on disk until their site has its turn.

A deployment's messages wait at the SuperLink, outside the coordinator's program. In a rehearsal a hundred hospitals' tasks would
otherwise lie in its memory side by side, and most of them are the same parameters.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import pickle
import tempfile
import weakref
from dataclasses import dataclass

from flwr.app import Message, RecordDict


class Shelf:
    """One file without a name, so that nothing stays behind however the program ends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this object
        self._waiting = 0
        weakref.finalize(self, self._file.close)

    def park(self, message: Message) -> Parked:
        """Put a message's content on disk; the given one is left unchanged."""
        if not self._waiting:
            self._file.truncate(0)
        start = self._file.seek(0, 2)
        pickle.dump(message.content, self._file)  # our own, and read by us: nothing of a peer's is ever unpickled
        self._waiting += 1
        label = copy.copy(message)
        label.content = RecordDict()
        return Parked(label, self, start)

    def content(self, start: int) -> RecordDict:
        """The content that begins at this byte, which then leaves the shelf."""
        self._file.seek(start)
        found = pickle.load(self._file)
        assert isinstance(found, RecordDict)
        self._waiting -= 1
        return found


@dataclass(frozen=True, slots=True)
class Parked:
    """One message on the shelf."""

    label: Message
    """The message without its content."""
    shelf: Shelf
    start: int
    """Where on the shelf its content begins (bytes)."""

    def take(self) -> Message:
        """The whole message; to be called once."""
        message = copy.copy(self.label)
        message.content = self.shelf.content(self.start)
        return message
