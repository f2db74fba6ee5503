"""Everything that can follow a record, opened by name, and the thread in which it does so beside a run.

A run does not depend on who follows it: what a follower fails with is a warning, and the record still has it all.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from panfm.errors import DataError, PanfmError
from panfm.reporting.follow import Entry, Follower, RecordTail

log = logging.getLogger("panfm.reporting")

POLL_S = 2.0
"""Between two looks at the record."""

PATIENCE_S = 30.0
"""How long the end of a run waits for those who follow it: a tracking server that hangs must not keep it."""


def open_followers(run_folder: Path, *, tensorboard: bool, mlflow: str) -> list[Follower]:
    """Those that are asked for, each imported only then.

    Raises: ConfigError when a library is missing or a store cannot be used.
    """
    found: list[Follower] = []
    if tensorboard:
        from panfm.reporting.tensorboard_events import TensorBoardFollower

        found.append(TensorBoardFollower(run_folder))
    if mlflow:
        from panfm.reporting.mlflow_run import MlflowFollower

        found.append(MlflowFollower(mlflow))
    return found


def follow_once(run_folder: Path, followers: Sequence[Follower]) -> int:
    """Hand everything that is on record now to all of them, and close them; returns the number of entries."""
    entries = RecordTail(run_folder).new_entries()
    for follower in followers:
        follower.take(entries)
        follower.close()
    return len(entries)


def follow_until(stop: threading.Event, run_folder: Path, followers: Sequence[Follower]) -> None:
    """Hand on what is new until told to stop, and what came until then; one that fails is left, with a warning."""
    tail, left = RecordTail(run_folder), list(followers)
    last = False
    while left:
        try:
            entries = tail.new_entries()
        except (DataError, OSError) as error:
            log.warning("the record is no longer followed: %s", error)
            break
        left = [follower for follower in left if not entries or _took(follower, entries)]
        if last:
            break
        last = stop.wait(POLL_S)
    for follower in followers:
        follower.close()


@contextmanager
def following(run_folder: Path, *, tensorboard: bool, mlflow: str) -> Iterator[None]:
    """Let those that are asked for follow the run in this folder while the block lasts.

    Raises: ConfigError before the block when one of them cannot be opened.
    """
    followers = open_followers(run_folder, tensorboard=tensorboard, mlflow=mlflow)
    if not followers:
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(
        target=follow_until, args=(stop, run_folder, followers), name="panfm-followers", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(PATIENCE_S)
        if thread.is_alive():
            log.warning("who follows the record is behind; `panfm follow %s --once` catches up", run_folder)


def catch_up(run_folder: Path, *, tensorboard: bool, mlflow: str) -> None:
    """What was written after the run's own program ended, such as probes; trouble is a warning."""
    try:
        follow_once(run_folder, open_followers(run_folder, tensorboard=tensorboard, mlflow=mlflow))
    except (PanfmError, OSError) as error:
        log.warning("the record is not followed to its end: %s", error)


def _took(follower: Follower, entries: Sequence[Entry]) -> bool:
    try:
        follower.take(entries)
    except (PanfmError, OSError) as error:
        log.warning("%s no longer follows the run: %s", type(follower).__name__, error)
        return False
    return True
