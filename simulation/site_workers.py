"""Processes in which the sites of a rehearsal answer side by side, a message at a time each.

A process that dies (a crash, the kernel's memory killer) takes only the message with it that it was working on; another takes
its place. What a site logs while it works is handed over to the loggers of the process that the person started.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from multiprocessing.connection import Connection, wait
from types import TracebackType

from flwr.app import Context, Message
from flwr.supercore.task_identity import TaskIdentity

from client.progress import STEPS
from panfm.errors import RunError
from simulation.parked import Parked

Answer = Callable[[Message, Context], Message]

SITES = "panfm.client"
"""Logger of a site: what goes wrong stays in its own site.log. Its steps, `STEPS`, are shown as they come."""

_LATE = "torch._dynamo"
"""Imported by torch itself at the first step of an optimiser, which takes seconds."""


class SiteWorkers:
    """Some worker processes; a context manager, for they must not outlive the rehearsal."""

    def __init__(self, answer: Answer, count: int, run_id: int) -> None:
        """Start the processes and wait until all are ready; the first takes the seconds of importing torch and Flower.

        Args:
            answer: what a site does with a message; a function of a module, for each process imports it by name.
            count: how many sites work at a time.
            run_id: Flower's number of the run.
        """
        # Not fork: a fork of a process in which torch runs threads may hang. The fork server has imported what answers, and run
        # nothing, so that the second process, or one in place of a dead one, is there at once and shares its memory.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload([answer.__module__, _LATE])
        self._answer, self.run_id = answer, run_id
        self._idle = self._started(count)
        self._busy: dict[Connection, tuple[_Worker, str]] = {}
        self._queue: deque[tuple[str, Parked, Context]] = deque()
        self._ready: dict[str, Message | None] = {}

    def __enter__(self) -> SiteWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (*self._idle, *(worker for worker, _ in self._busy.values())):
            worker.end()

    def put(self, message_id: str, message: Parked, context: Context) -> None:
        """Have a site work on a message as soon as a process is free."""
        self._queue.append((message_id, message, context))
        self._hand_out()

    def take(self, wanted: Collection[str], timeout_s: float) -> tuple[str, Message | None] | None:
        """The reply to one of the messages; None in its place when its process died, None altogether when none is ready.

        Waits until a reply is ready, be it another than these: whoever asks for them one by one will ask for that next.
        """
        until = time.monotonic() + timeout_s
        while self._busy and self._ready.keys().isdisjoint(wanted) and (left_s := until - time.monotonic()) > 0:
            heard = wait(list(self._busy), 0.0 if self._ready else left_s)
            for connection in heard:
                assert isinstance(connection, Connection)
                self._hear(connection)
            if not heard:
                break
        for message_id in wanted:
            if message_id in self._ready:
                return message_id, self._ready.pop(message_id)
        return None

    def _started(self, count: int) -> list[_Worker]:
        workers = [_Worker(self._processes, self._answer, self.run_id) for _ in range(count)]
        for worker in workers:
            worker.wait_until_ready()
        return workers

    def _hand_out(self) -> None:
        while self._queue and self._idle:
            worker, (message_id, message, context) = self._idle.pop(), self._queue.popleft()
            self._busy[worker.connection] = worker, message_id
            worker.send((message.take(), context))

    def _hear(self, connection: Connection) -> None:
        """A log record or a reply of a worker, or its death."""
        worker, message_id = self._busy[connection]
        said = worker.receive()
        if isinstance(said, logging.LogRecord):
            logging.getLogger(said.name).handle(said)
            return
        del self._busy[connection]
        if said is None:
            worker.end()
            (worker,) = self._started(1)
        self._ready[message_id] = said
        self._idle.append(worker)
        self._hand_out()


class _Worker:
    """One process, and this side of the pipe to it."""

    def __init__(self, processes: multiprocessing.context.ForkServerContext, answer: Answer, run_id: int) -> None:
        self.connection, other = processes.Pipe()
        self._process = processes.Process(target=_serve, args=(other, answer, run_id), daemon=True)
        self._process.start()
        other.close()  # so that the pipe ends when the process does

    def wait_until_ready(self) -> None:
        """Wait for its first word.

        Raises: RunError when it dies before, as for want of memory.
        """
        try:
            self.connection.recv()
        except EOFError as error:
            raise RunError("a process for the pretend hospitals could not start; try workers=1") from error

    def send(self, work: tuple[Message, Context]) -> None:
        try:
            self.connection.send(work)
        except OSError:  # it died while it had nothing to do; `receive` finds that out
            return

    def receive(self) -> logging.LogRecord | Message | None:
        """What it says; None when it is dead."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        assert isinstance(said, logging.LogRecord | Message)
        return said

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _serve(connection: Connection, answer: Answer, run_id: int) -> None:
    """What a worker does: answer until the pipe ends."""
    _begin(connection, run_id)
    connection.send("ready")
    while True:
        try:
            message, context = connection.recv()
        except EOFError:
            return
        connection.send(answer(message, context))


def _begin(connection: Connection, run_id: int) -> None:
    # Ctrl-C ends a worker without a word: the process that the person started speaks for all, and its death ends all.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
    for name, handler in ((SITES, logging.NullHandler()), (STEPS, _ToParent(connection))):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)


class _ToParent(logging.handlers.QueueHandler):
    """Sends records through the pipe, in a form that can be pickled."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)  # type: ignore[arg-type]  # only `enqueue` touches it
        self._connection = connection

    def enqueue(self, record: logging.LogRecord) -> None:
        self._connection.send(record)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
