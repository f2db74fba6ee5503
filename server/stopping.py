"""What ends a run from outside while it waits: a person's wish, or a SuperLink that no longer serves it.

Both are seen where the coordinator's program speaks with Flower: between messages, and never within a sum. A wish ends the run on
record, with its last checkpoint for use. A SuperLink that fails ends only this process: the record stays open, and another
process goes on from it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.app import Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from panfm.coordinator.stop_wish import stop_wished_by
from panfm.errors import RunError


class StopWishedError(RunError):
    """A person wants the run to end."""


class SuperLinkLostError(RunError):
    """The SuperLink does not answer, or has ended the run for itself: this process can do no more."""


class WatchedGrid(Grid):
    """Flower's grid, which looks for a wish to stop before each exchange with it."""

    def __init__(self, grid: Grid, run_folder: Path) -> None:
        self._grid, self._run_folder = grid, run_folder

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send. Raises: StopWishedError, SuperLinkLostError."""
        with self._watched():
            return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take replies. Raises: StopWishedError, SuperLinkLostError."""
        with self._watched():
            return self._grid.pull_messages(message_ids)

    def get_node_ids(self) -> Iterable[int]:
        """Who is connected. Raises: StopWishedError, SuperLinkLostError."""
        with self._watched():
            return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Who is connected, with names. Raises: StopWishedError, SuperLinkLostError."""
        with self._watched():
            return self._grid.get_nodes()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Part of Flower's interface."""
        with self._watched():
            return self._grid.send_and_receive(messages, timeout=timeout)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Part of Flower's interface."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def set_run(self, run: Run) -> None:
        """Part of Flower's interface."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if (by := stop_wished_by(self._run_folder)) is not None:
            raise StopWishedError(f"stopped by {by}")
        try:
            yield
        except httpx.HTTPError as error:
            raise SuperLinkLostError(
                f"the SuperLink no longer serves this run ({type(error).__name__}); the run goes on from its last checkpoint "
                "when it is taken up again"
            ) from error
