"""What the SuperExecs of site and coordinator have in common: they stand in Flower's own, and hand tasks to a program that waits.

Flower's SuperExec asks an executor what it may take and hands it each task; Flower's own executor then starts one of six programs
by looking its name up in PATH, with the task's token on the command line. Ours takes tasks of all kinds, those that are not to be
run included, for a task that nobody takes is waited for.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from deploy.order import Order
from deploy.pinned_flower import SUPEREXEC, pinned
from deploy.supervised import beat_with_each_call, end_with_supervisor
from panfm.errors import PanfmError

if TYPE_CHECKING:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

log = logging.getLogger("panfm.deploy")

LOOK_EVERY_S = 0.5


def takes_all(kind: str) -> str:
    """Refuses no kind of task."""
    return ""


class TaskExecutor:
    """Flower's Executor interface: one waiting program (`deploy.waiting`), and each task in a process that it forks."""

    def __init__(self, command: Sequence[str], refusal: Callable[[str], str] = takes_all) -> None:
        """`refusal` says why a kind of task is not handed on; nothing: it is."""
        self._command, self._refusal = command, refusal
        self._start()

    def _start(self) -> None:
        self._is_ready = False
        self._orders, theirs = socket.socketpair()
        self._orders.setblocking(False)
        with theirs:
            self._waiting = subprocess.Popen(self._command, stdin=theirs.fileno())

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """All kinds are taken, the refused ones to be refused."""
        return supported_task_types, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """There is always room for one process."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Hand a task to the program that waits, or refuse it."""
        from flwr.supercore.superexec.executor import LaunchResult

        order = Order.of(spec)
        if refusal := self._refusal(order.kind):
            return LaunchResult.failed(refusal)
        try:
            self._orders.sendall(order.to_line())
        except OSError:
            return LaunchResult.failed(
                "the program that waits for tasks has just ended; the task will be handed out again"
            )
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Called before each question for a task: comes back when somebody is ready to begin one.

        It does not beat meanwhile, so that a SuperExec whose program never comes up is seen to be dead.
        """
        while not self._someone_waits():
            time.sleep(LOOK_EVERY_S)

    def _someone_waits(self) -> bool:
        if (code := self._waiting.poll()) is not None:
            log.warning("the program that waits for tasks ended with code %d; another is started", code)
            self._orders.close()
            self._start()
        if not self._is_ready:
            with suppress(BlockingIOError, ConnectionError):
                self._is_ready = bool(self._orders.recv(1))
        return self._is_ready

    def close(self) -> None:
        """Without orders to come the program that waits ends; those that work at tasks watch this process."""
        self._orders.close()


def run_superexec(make_executor: Callable[[], TaskExecutor]) -> None:
    """Run Flower's SuperExec with an executor of ours, whatever executor its options ask for."""
    try:
        module = pinned(SUPEREXEC, "get_executor", "run_superexec", "make_simple_http_retry_invoker")
    except PanfmError as error:
        sys.exit(f"panfm: {error}")
    from flwr.supercore.cli import flower_superexec

    module.get_executor = lambda *_, **__: make_executor()  # type: ignore[attr-defined]  # a module's attribute
    beat_with_each_call(module)
    end_with_supervisor()
    flower_superexec()
