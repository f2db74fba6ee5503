"""A program that has imported what its tasks need, waits, and begins each task in a process of the task's own, by forking.

To import torch, Flower and panfm takes eight seconds of a processor, and for every message of every round Flower starts a process
anew. Worse, a task that was taken and is not begun within 30 s is taken away and handed out again: on a busy machine the next
process then imports beside the last, and none of them is ever in time. The program that waits has seen no task, no token and no
study's code; it starts no thread of its own and never touches a GPU, so that a copy of it is as good as a new process.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from deploy.order import Order

log = logging.getLogger("panfm.deploy")

ORDERS = 0
"""Where orders come from and word goes back that one is ready: standard input, which is a socket."""
READY = b"!"


def wait_for_orders(modules: Iterable[str], begin: Callable[[Order], None]) -> None:
    """Import modules, say so, and begin each task that is ordered; comes back when there will be no more orders.

    Args:
        modules: without any that belongs to a study.
        begin: called in the task's own process, which ends with it.
    """
    for module in modules:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, bury)
    os.write(ORDERS, READY)
    for line in os.fdopen(ORDERS, "rb", buffering=0, closefd=False):  # no order is read before its turn
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _leave_orders()
            begin(Order.from_line(line))
            return


def bury(*_: object) -> None:
    """Let the processes go that have ended; says so when one was killed."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if os.WIFSIGNALED(ended[1]):
                log.warning(
                    "process %d, which worked at a task, was ended by signal %d", ended[0], os.WTERMSIG(ended[1])
                )


def _leave_orders() -> None:
    """Let go of the socket: further orders are not this process's business."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), ORDERS)
