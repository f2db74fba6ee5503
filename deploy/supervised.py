"""What a program owes to who keeps it running (`deploy/supervision.py`): signs of life, and to end when that one is gone.

That a process is there does not say that it works: Flower's SuperNode leaves its loop on an answer that it did not expect, and
its process stays, for the thread that hands out tasks goes on. So a loop touches a file at each turn, and at each try while the
other side is away. An orphan would hold a port, or a place at the coordinator, that the next of its kind needs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BEAT_FILE, SUPERVISOR = "PANFM_BEAT_FILE", "PANFM_SUPERVISOR"
"""The environment's words for the file and for the process that listens; where there are none, nobody does."""


LOOK_EVERY_S = 1.0
ORPHAN_ENDS_S = 10.0
"""How long an orphan may take to end by itself."""


def end_with_supervisor() -> None:
    """End, as at SIGTERM, when the process that started this one and keeps it running is gone."""
    if number := os.environ.get(SUPERVISOR):
        threading.Thread(target=_end_as_orphan, args=(int(number),), daemon=True).start()


def _end_as_orphan(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORPHAN_ENDS_S)
    os._exit(1)


def beat() -> None:
    """Say that the loop goes round."""
    if path := os.environ.get(BEAT_FILE):
        with contextlib.suppress(OSError):  # a full disk is no reason to stop
            Path(path).touch()


def beat_with_each_call(module: ModuleType) -> None:
    """Beat with every call that a module of Flower repeats until it succeeds: before it, after it, and between two tries.

    Args:
        module: one that makes its repeated calls by `make_simple_http_retry_invoker`.
    """
    make = module.make_simple_http_retry_invoker

    def made() -> Any:
        invoker = make()
        invoker.invoke = _beating(invoker.invoke)
        invoker.on_backoff = _beating(invoker.on_backoff)
        return invoker

    module.make_simple_http_retry_invoker = made  # type: ignore[attr-defined]


def beat_with_each_pause(module: ModuleType) -> None:
    """Beat with every `time.sleep` of a module, which knows of `time` nothing else."""
    module.time = SimpleNamespace(sleep=_beating(time.sleep))  # type: ignore[attr-defined]


def _beating(call: Callable[..., Any]) -> Callable[..., Any]:
    def beaten(*args: Any, **keywords: Any) -> Any:
        beat()
        answer = call(*args, **keywords)
        beat()
        return answer

    return beaten
