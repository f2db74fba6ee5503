"""What every process of a deployment holds: memory and open files, by who it is rather than by its number.

Processes are found from those that keep them running, again and again, for each task is answered by a process of its own. A
process's peak is the kernel's own (VmHWM) as last seen before it ended; memory that a fork shares with the program that it came
from counts in both. Linux alone.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOK_EVERY_S = 0.2
"""Often enough for the peak of a task's process, which lives for seconds."""
ROLES = {
    "superlink.py": "SuperLink",
    "superexec.py": "SuperExec",
    "supernode.py": "SuperNode",
    "serve.py": "runtime",
    "flwr-serverapp": "ServerApp",
    "server_app.py": "ServerApp",
    "guard.py": "ClientApp",
    "nginx": "nginx",
    "flwr": "Flower's command line",
}
"""Word on a command line -> who it is."""
WAITS = "{} in waiting"
"""The program from which the processes of tasks are forked."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process, as it stands."""

    side: str
    """coordinator, proxy or a site."""
    role: str
    pid: int
    resident_mb: float
    peak_mb: float
    handles: int


def processes_of(roots: Mapping[str, int]) -> list[Process]:
    """All processes below these, themselves included.

    Args:
        roots: side -> the process that keeps all else of it running.
    """
    return [found for side, root in roots.items() for found in _below(side, root, "")]


@dataclass(slots=True)
class Watch:
    """The peak of every role so far."""

    roots: Mapping[str, int]
    peak_mb: dict[tuple[str, str], float] = field(default_factory=dict)
    """(side, role) -> the largest peak of its processes, which follow each other."""

    def look(self) -> None:
        """Look once."""
        for process in processes_of(self.roots):
            key = (process.side, process.role)
            self.peak_mb[key] = max(process.peak_mb, self.peak_mb.get(key, 0.0))


@contextmanager
def watching(look: Callable[[], None]) -> Iterator[None]:
    """Look again and again in the background while the block runs."""
    ending = threading.Event()

    def keep_on() -> None:
        while not ending.wait(LOOK_EVERY_S):
            look()

    watcher = threading.Thread(target=keep_on, name="watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ending.set()
        watcher.join()


def role_of(command: str, parent_role: str) -> str:
    """Who a process is; a task's process has the command line of the program that it was forked from."""
    words = [Path(word).name for word in command.split("\0")[:8]]
    role = next((role for word, role in ROLES.items() if any(each.startswith(word) for each in words)), "other")
    if role in ("ServerApp", "ClientApp") and parent_role == "SuperExec":
        return WAITS.format(role)
    return role


def _below(side: str, pid: int, parent_role: str) -> Iterator[Process]:
    with suppress(OSError, ValueError, StopIteration):  # it ended meanwhile
        place = Path(f"/proc/{pid}")
        if not (command := (place / "cmdline").read_text()):  # it is ending
            return
        role = role_of(command, parent_role)
        told = (place / "status").read_text()
        handles = len(list((place / "fd").iterdir()))
        children = [child for task in (place / "task").iterdir() for child in (task / "children").read_text().split()]
        yield Process(side, role, pid, _mb(told, "VmRSS"), _mb(told, "VmHWM"), handles)
        for child in children:
            yield from _below(side, int(child), role)


def _mb(status: str, name: str) -> float:
    """A value of /proc/PID/status, which counts in units of 1024 bytes."""
    (line,) = (line for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024 / 1e6
