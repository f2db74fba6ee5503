"""One writer for a run: two coordinators that write one record and one folder of checkpoints would ruin both.

The lock is the kernel's (flock), so it ends with the process that holds it, however that died; a run that was killed can go
on at once. The file beside it only names the holder to the person who is kept out, and is never removed: whoever removes a
lock's file takes it from a holder that others can no longer see.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from panfm.errors import LockedError


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock in this file while the block runs.

    Raises: LockedError, naming the holder, when another process (or this one, elsewhere) holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by programs that are started meanwhile
    try:
        _take(descriptor, path)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_holder()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process, this one included, holds the lock in this file; nothing is written."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise LockedError(
            f"the run in {path.parent} is being written by {_described(path)}; wait until it ends, or stop it"
        ) from error


def _holder() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _described(path: Path) -> str:
    """The holder in words; it may be about to write its name."""
    try:
        holder = json.loads(path.read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
