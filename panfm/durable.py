"""Writing so that a crash at any moment leaves the old thing or the new one, never half of either."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_folder(place: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a draft beside `place`, flush it to disk, and rename it into place.

    An older folder of that name is replaced; between its removal and the rename a crash leaves the finished draft.
    """
    draft = place.with_name(f".{place.name}.draft")
    made = [folder for folder in place.parents if not folder.exists()]
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    fill(draft)
    for path in (*draft.iterdir(), draft):
        flush(path)
    if place.exists():
        shutil.rmtree(place)
    draft.replace(place)
    for folder in (place, *made):  # a new folder survives only when the one that lists it is on disk, too
        flush(folder.parent)


def write_file(place: Path, content: bytes, *, flushed: bool = True) -> None:
    """Write a file under a temporary name, `<name>.tmp` beside it, and rename it into place.

    Args:
        flushed: have it on disk before it gets its name. False where many files are written and `os.sync` follows: each
            flush of its own costs milliseconds.
    Raises: OSError, leaving no temporary file behind.
    """
    temporary = place.with_name(f"{place.name}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            if flushed:
                os.fsync(stream.fileno())
        temporary.replace(place)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk, half a file only takes room
        raise


def write_private(place: Path, content: bytes) -> None:
    """As `write_file`, for what nobody but its owner may read, from its first byte on.

    Raises: OSError, leaving no temporary file behind.
    """
    temporary = place.with_name(f".{place.name}.draft")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(place)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Ask the operating system to put a file's or a folder's content on disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
