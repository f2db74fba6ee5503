"""Replies are asked for one at a time, belong to the message that they answer, and pauses are a share of the wait."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server import replies
from server.replies import Mailbox
from tests.client.small_study import Answering, ScriptedGrid


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(replies, "POLL_S", 0.001)


class _Grid(ScriptedGrid):
    """Keeps what was asked for in each look."""

    def __init__(self, script: Sequence[Sequence[Answering]], ids: Sequence[str | None] | None = None) -> None:
        super().__init__(script, ids)
        self.looks: list[list[str]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.looks.append(list(message_ids))
        return super().pull_messages(message_ids)


def _message(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)


def _says(node: int, word: str) -> Answering:
    return lambda sent: Message(RecordDict({"word": ConfigRecord({"is": word})}), reply_to=sent[node])


def _mailbox(grid: ScriptedGrid, *nodes: int) -> Mailbox[int]:
    mailbox = Mailbox[int](grid)
    for node in nodes:
        mailbox.send(_message(node), node)
    return mailbox


def _look(mailbox: Mailbox[int]) -> list[tuple[int, str]]:
    return [(node, str(reply.content.config_records["word"]["is"])) for node, reply in mailbox.look()]


def test_each_reply_is_asked_for_by_itself_and_belongs_to_its_message() -> None:
    grid = _Grid([[], [_says(12, "b")], [_says(13, "c")], [_says(11, "a")]])
    mailbox = _mailbox(grid, 11, 12, 13)
    assert _look(mailbox) == [(12, "b"), (13, "c")]
    assert mailbox.waiting() == [11]
    assert _look(mailbox) == [(11, "a")]
    assert mailbox.waiting() == []
    assert grid.looks == [["to-11"], ["to-12"], ["to-13"], ["to-11"]]


def test_second_reply_and_reply_to_something_else_are_nobodys() -> None:
    stranger = _message(99)
    stranger.metadata.__dict__["_message_id"] = "of another run"
    grid = _Grid([[_says(11, "a"), _says(11, "again"), lambda _sent: _says(0, "x")({0: stranger})], [_says(12, "b")]])
    assert _look(_mailbox(grid, 11, 12)) == [(11, "a"), (12, "b")]


def test_message_sent_while_looking_is_looked_for_the_next_time() -> None:
    grid = _Grid([[_says(11, "a")], [_says(12, "b")]])
    mailbox = _mailbox(grid, 11)
    for _node, _reply in mailbox.look():
        assert mailbox.send(_message(12), 12)
    assert mailbox.waiting() == [12]
    assert _look(mailbox) == [(12, "b")]


@pytest.mark.parametrize("ids", [[None], []])
def test_message_that_could_not_be_sent_is_not_waited_for(ids: Sequence[str | None]) -> None:
    """Flower gives None for a message that it could not push, and no ids when it was too large."""
    mailbox = Mailbox[int](_Grid([], ids))
    assert not mailbox.send(_message(11), 11)
    assert mailbox.waiting() == []


def test_pause_is_a_share_of_the_wait_and_never_past_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "POLL_S", 2.0)
    clock, slept = [1000.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", slept.append)
    mailbox = _mailbox(_Grid([]), 11)
    for waited, until in ((0.0, 2000.0), (10.0, 2000.0), (500.0, 2000.0), (10.0, 1010.05), (10.0, 1009.0)):
        clock[0] = 1000.0 + waited
        mailbox.rest(until)
    assert slept == [replies._SHORTEST_PAUSE_S, pytest.approx(0.2), 2.0, pytest.approx(0.05)]
