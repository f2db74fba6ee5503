"""What keeps the programs of a machine running: it starts them, starts again what ended or stopped, and ends all together.

A hospital's machine has nobody who looks at it at night, and Flower's programs end, or stop inside, on answers that they did not
expect. Here each is started again after a pause that grows while it keeps failing; one that gives no sign of life is ended first.
Every program leads a process group of its own, so that what it started ends with it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.supervised import BEAT_FILE, SUPERVISOR

log = logging.getLogger("panfm.deploy")

TICK_S = 0.5
PATIENCE_S = 8.0
"""How long programs may take to end: Flower's force themselves after 5 s, container engines kill everybody after 10."""
STEADY_S = 120.0
"""After so long a run, an end counts as the first failure again."""
WATCHED_S = 20.0
"""Longest time between two ticks: burying and starting take no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program and how patient one is with it."""

    name: str
    command: Sequence[str]
    shortest_pause_s: float = 1.0
    longest_pause_s: float = 60.0
    """Before it is started again: twice as long after each failure in a row, between these two."""
    first_sign_s: float = 300.0
    """How long it may take to its first sign of life: it imports torch and Flower, on a machine that may be busy."""
    late_s: float = 60.0
    """After so long without a sign it does not count as alive: an HTTP call waits up to 30 s, and 20 s pass between tries."""
    silence_s: float = 120.0
    """After so long without a sign it is ended."""
    may_start: Callable[[], bool] = lambda: True
    """Asked before its first start."""
    probe: Callable[[], bool] | None = None
    """Asks it whether it lives, for a program that does not beat by itself."""


def pause_s(program: Program, failures: int) -> float:
    """How long to wait after so many failures in a row, of which there is one at least."""
    return min(program.shortest_pause_s * 2.0 ** min(failures - 1, 30), program.longest_pause_s)


@dataclass(slots=True)
class _Kept:
    """A program and what became of it."""

    program: Program
    beats: Path
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    failures: int = 0
    beaten_ns: int = 0
    heard_s: float | None = None
    """When its last sign was noticed, by the clock of this process: clocks on the wall are set."""

    def is_alive(self, now_s: float) -> bool:
        """Whether it runs, and has given a sign of late."""
        return self.process is not None and self.heard_s is not None and now_s - self.heard_s <= self.program.late_s

    def is_silent(self, now_s: float) -> bool:
        """Whether it runs and gives no sign any more."""
        if self.heard_s is None:
            return now_s - self.started_s > self.program.first_sign_s
        return now_s - self.heard_s > self.program.silence_s

    def listen(self, now_s: float) -> None:
        """Notice a new sign, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            if (beaten_ns := self.beats.stat().st_mtime_ns) != self.beaten_ns:
                self.beaten_ns, self.heard_s = beaten_ns, now_s


@dataclass(slots=True)
class Supervisor:
    """Keeps programs running until it is told to end them.

    Programs beat into files below `beats` (`deploy.supervised`), or are asked by their probe.
    """

    programs: Sequence[Program]
    environment: Mapping[str, str]
    beats: Path
    ticked_s: float = 0.0
    _kept: list[_Kept] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept = [_Kept(program, self.beats / program.name) for program in self.programs]

    def alive(self) -> dict[str, bool]:
        """Each program and whether it lives; none does when nobody has looked after them of late."""
        now_s = time.monotonic()
        is_watched = now_s - self.ticked_s < WATCHED_S
        return {kept.program.name: is_watched and kept.is_alive(now_s) for kept in self._kept}

    def run(self, is_told_to_end: Callable[[], bool]) -> None:
        """Look after the programs until told to end them."""
        try:
            with _probes(self._kept):
                while not is_told_to_end():
                    self.tick(time.monotonic())
                    time.sleep(TICK_S)
        finally:
            end_all([kept.process for kept in self._kept if kept.process is not None])

    def tick(self, now_s: float) -> None:
        """Start what is due, bury what ended, end what is silent."""
        for kept in self._kept:
            if kept.process is None:
                if now_s >= kept.start_at_s and (kept.failures or kept.program.may_start()):
                    self._start(kept, now_s)
            elif has_ended(kept.process):
                self._bury(kept, now_s)
            else:
                self._listen(kept, now_s)
        self.ticked_s = now_s

    def _start(self, kept: _Kept, now_s: float) -> None:
        kept.beats.unlink(missing_ok=True)
        kept.beaten_ns, kept.heard_s, kept.started_s = 0, None, now_s
        environment = {**self.environment, BEAT_FILE: str(kept.beats), SUPERVISOR: str(os.getpid())}
        try:
            kept.process = subprocess.Popen(
                kept.program.command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        except OSError as error:
            self._postpone(kept, now_s, f"cannot be started ({error.strerror})")
            return
        log.info("%s started, process %d", kept.program.name, kept.process.pid)

    def _bury(self, kept: _Kept, now_s: float) -> None:
        assert kept.process is not None  # it has ended
        # What it left behind, without a word: a task that ends politely is done to Flower, and its message lost.
        _signal(kept.process, signal.SIGKILL)
        code = kept.process.wait()
        kept.process = None
        self._postpone(
            kept, now_s, f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        )

    def _listen(self, kept: _Kept, now_s: float) -> None:
        assert kept.process is not None  # it runs
        kept.listen(now_s)
        if kept.is_silent(now_s):
            log.warning("%s gives no sign of life; it is ended", kept.program.name)
            _signal(kept.process, signal.SIGKILL)  # whoever does not answer does not tidy up, either

    def _postpone(self, kept: _Kept, now_s: float, what: str) -> None:
        kept.failures = 1 if now_s - kept.started_s > STEADY_S else kept.failures + 1
        pause = pause_s(kept.program, kept.failures)
        kept.start_at_s = now_s + pause
        log.warning("%s %s; it starts again in %.0f s", kept.program.name, what, pause)


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a program has ended; it stays unburied, so that its number names its group and nobody else's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def end_all(processes: Sequence[subprocess.Popen[bytes]], patience_s: float = PATIENCE_S) -> None:
    """End programs and whatever they started: politely, all at once, and what is left after a while by force."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and not all(has_ended(process) for process in processes):
        time.sleep(0.05)
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(process.pid, number)


@contextmanager
def _probes(kept: Sequence[_Kept]) -> Iterator[None]:
    """Ask those who do not beat by themselves, each in a thread, for an answer may take its time."""
    ending = threading.Event()
    asked = [one for one in kept if one.program.probe is not None]
    threads = [threading.Thread(target=_ask, args=(one, ending), daemon=True) for one in asked]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()


def _ask(kept: _Kept, ending: threading.Event) -> None:
    assert kept.program.probe is not None  # it is asked
    while not ending.wait(2.0):
        if kept.process is not None and kept.program.probe():
            kept.beats.touch()
