"""A grid on which things go wrong as planned: answers are lost, held up or spoilt on their way, and programs fail.

It stands between the coordinator's app and the rehearsal's grid. What it spoils has passed the site's gate and its audit log
already, as with a broken link or with a hospital that runs other code.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from panfm.config import FaultConfig, FaultKind
from simulation.faults import Fault, planned_fault
from simulation.site_faults import IN_PROCESS, order
from simulation.tampering import SPOILT, is_update, tampered


class FaultyGrid(Grid):
    """Another grid, with the faults of a plan."""

    def __init__(self, grid: Grid, config: FaultConfig, sites: Mapping[int, str]) -> None:
        """Put the plan before a grid.

        Args:
            sites: node -> name of its site.
        """
        self._grid, self._config, self._sites = grid, config, sites
        self._attempts: Counter[tuple[int, int]] = Counter()
        self._tasks: dict[str, tuple[int, int]] = {}
        """Message -> (node, round), of the tasks that were sent and not answered yet."""
        self._held: dict[str, tuple[float, Message]] = {}
        """Message -> when its answer may go on, and the answer."""
        self._earlier: dict[int, RecordDict] = {}
        """Node -> its answer of a round, where the plan has it come again in the next."""

    def set_run(self, run: Run) -> None:
        """Take the run's description; part of Flower's interface."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node; part of Flower's interface."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All sites of the rehearsal."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; tasks of which the plan says so carry an order to fail."""
        pushed = list(messages)
        rounds = [_round_of_task(message) for message in pushed]
        for message, number in zip(pushed, rounds, strict=True):
            if number is not None:
                self._send(message, number)
        ids = list(self._grid.push_messages(pushed))
        for message_id, message, number in zip(ids, pushed, rounds, strict=True):
            if number is not None:
                self._tasks[message_id] = (message.metadata.dst_node_id, number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that come through, as they come through."""
        wanted = set(message_ids)
        self._hold(self._grid.pull_messages(wanted - self._held.keys()))
        now = time.monotonic()
        ready = [message_id for message_id, (due, _) in self._held.items() if message_id in wanted and due <= now]
        return [self._held.pop(message_id)[1] for message_id in ready]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send all and wait for all; part of Flower's interface, and blind to the plan."""
        return self._grid.send_and_receive(messages, timeout=timeout)

    def _send(self, message: Message, number: int) -> None:
        node = message.metadata.dst_node_id
        self._attempts[node, number] += 1
        fault = self._planned(node, number)
        first = self._attempts[node, number] == 1
        if fault is not None and fault.kind in IN_PROCESS and (self._config.lasting or first):
            order(message, fault)

    def _hold(self, replies: Iterable[Message]) -> None:
        """Keep replies until they may go on: most at once, a slow one later, a lost one never."""
        for reply in replies:
            message_id = reply.metadata.reply_to_message_id
            node, number = self._tasks.pop(message_id, (0, 0))
            fault = self._planned(node, number) if number else None
            came = self._spoilt(reply, node, fault)
            if number:
                self._remember(reply, node, number)
            if fault is None or fault.kind is not FaultKind.drop:
                wait_s = self._config.slow_s if fault is not None and fault.kind is FaultKind.slow else 0.0
                self._held[message_id] = time.monotonic() + wait_s, came

    def _spoilt(self, reply: Message, node: int, fault: Fault | None) -> Message:
        """The reply as it arrives; what is no update cannot be spoilt."""
        if fault is None or reply.has_error() or not is_update(reply.content):
            return reply
        if fault.kind is FaultKind.replay and node in self._earlier:
            return _with_content(reply, self._earlier.pop(node))
        if fault.kind in (FaultKind.stale_round, FaultKind.replay):
            return _with_content(reply, tampered(reply.content, FaultKind.stale_round))
        return _with_content(reply, tampered(reply.content, fault.kind)) if fault.kind in SPOILT else reply

    def _remember(self, reply: Message, node: int, number: int) -> None:
        """Keep an answer that is to come again in the next round, and forget older ones."""
        self._earlier.pop(node, None)
        coming = self._planned(node, number + 1)
        replayed = coming is not None and coming.kind is FaultKind.replay
        if replayed and not reply.has_error() and is_update(reply.content):
            self._earlier[node] = copy.deepcopy(reply.content)

    def _planned(self, node: int, number: int) -> Fault | None:
        return planned_fault(self._config, self._sites[node], number)


def _round_of_task(message: Message) -> int | None:
    """The round whose training a message asks for, if it does."""
    envelope = message.content.config_records.get("envelope")
    if envelope is None or envelope["kind"] != "train_task":
        return None
    return int(json.loads(str(envelope["header"]))["round"])


def _with_content(reply: Message, content: RecordDict) -> Message:
    """The same reply with other content."""
    other = copy.copy(reply)
    other.content = content
    return other
