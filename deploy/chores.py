"""What a runtime does itself every few seconds, beside the programs that it keeps running."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from panfm.errors import PanfmError

log = logging.getLogger("panfm.deploy")

OVERDUE_S = 300.0
"""A chore that did not succeed for so long is not alive: it asks Flower's command line, which may take 180 s to answer."""


@dataclass(slots=True)
class Chore:
    """Something done again and again in a thread of its own; a failure is told and tried again."""

    name: str
    every_s: float
    do: Callable[[], Sequence[str]]
    """Returns what there is to say, a line each."""
    succeeded: threading.Event = field(default_factory=threading.Event)
    """Set once it has succeeded."""
    _succeeded_s: float = 0.0
    _told: str = ""

    def is_alive(self) -> bool:
        """Whether it succeeded of late."""
        return self.succeeded.is_set() and time.monotonic() - self._succeeded_s < OVERDUE_S

    def turn(self) -> None:
        """Do it once; the same failure is told once in a row."""
        try:
            for line in self.do():
                log.info("%s", line)
        except PanfmError as error:
            if str(error) != self._told:
                log.warning("%s: %s", self.name, error)
            self._told = str(error)
        except Exception:  # a defect in one chore must not end the others
            log.exception("%s failed", self.name)
        else:
            self._told, self._succeeded_s = "", time.monotonic()
            self.succeeded.set()

    def keep_on(self, ending: threading.Event) -> None:
        """Do it until the event."""
        while not ending.is_set():
            self.turn()
            ending.wait(self.every_s)


@contextmanager
def doing(chores: Sequence[Chore]) -> Iterator[None]:
    """Do them in the background; nobody waits for one that is in the middle of its turn when the process ends."""
    ending = threading.Event()
    for chore in chores:
        threading.Thread(target=chore.keep_on, args=(ending,), name=chore.name, daemon=True).start()
    try:
        yield
    finally:
        ending.set()
