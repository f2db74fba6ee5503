"""What a person sees while a rehearsal runs: bars per round and site, and one readable line per round.

The bars follow the sites' own step logs, which only a rehearsal can see since its hospitals are on this machine; the
lines are the coordinator's log, the same as in a deployment.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from client.progress import STEPS


class Display:
    """Bars and lines on a terminal; plain lines where there is none."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        # What goes wrong at a site stands in full in its own site.log; here its coded line, by the coordinator, is enough.
        self._handlers = {
            "panfm.server": _Lines(console),
            "panfm.client": logging.NullHandler(),
            STEPS: _Steps(self),
        }

    def __enter__(self) -> Display:
        for name, handler in self._handlers.items():
            logger = logging.getLogger(name)
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            logger.propagate = False
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for name, handler in self._handlers.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).propagate = True

    def say(self, line: str) -> None:
        """Print one line above the bars."""
        self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def advance(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show how far something is; its bar goes when it is done."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)
        if done >= total:
            self.forget(what)

    def forget(self, what: str) -> None:
        """Take a bar away, if it is still there."""
        if what in self._tasks:
            self._progress.remove_task(self._tasks.pop(what))


class _Lines(logging.Handler):
    """The coordinator's log, one line each."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        self._console.print(
            record.getMessage(), style=style, highlight=False, markup=False, emoji=False, soft_wrap=True
        )


class _Steps(logging.Handler):
    """The sites' steps, as bars: one for each site that trains now."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display
        self._titles: dict[str, str] = {}
        """site -> its latest bar."""

    def emit(self, record: logging.LogRecord) -> None:
        about = record.__dict__
        title = f"round {about['round']} at {about['site']}"
        if title != self._titles.get(about["site"], title):
            self._display.forget(self._titles[about["site"]])  # it failed on the way
        self._titles[about["site"]] = title
        note = "with privacy" if about["loss"] is None else f"loss {about['loss']:.3f}"
        self._display.advance(title, about["step"], about["num_steps"], note)
