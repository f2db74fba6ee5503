"""Replies are handed over as they come, each node's own, and never waited for past the deadline."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from server import replies
from server.replies import gather
from tests.client.small_study import ScriptedGrid


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr(replies, "POLL_S", 0.001)


def _messages(*nodes: int) -> dict[int, Message]:
    return {node: Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in nodes}


def _reply(to: Message, word: str) -> Message:
    return Message(RecordDict({"word": ConfigRecord({"is": word})}), reply_to=to)


def _words(pairs: Iterable[tuple[int, Message]]) -> list[tuple[int, str]]:
    return [(node, str(reply.content.config_records["word"]["is"])) for node, reply in pairs]


def test_replies_come_as_they_arrive_and_belong_to_the_node_that_was_asked() -> None:
    messages = _messages(11, 12, 13)
    script = [[], [_lambda(13, "c")], [], [_lambda(11, "a"), _lambda(12, "b")]]
    grid = ScriptedGrid(script)
    assert _words(gather(grid, messages, 60.0)) == [(13, "c"), (11, "a"), (12, "b")]


def test_second_reply_and_reply_to_something_else_are_nobodys() -> None:
    stranger = _messages(99)[99]
    stranger.metadata.__dict__["_message_id"] = "of another round"
    grid = ScriptedGrid(
        [[_lambda(11, "a"), _lambda(11, "again"), lambda _sent: _reply(stranger, "x")], [_lambda(12, "b")]]
    )
    assert _words(gather(grid, _messages(11, 12), 60.0)) == [(11, "a"), (12, "b")]


def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    grid = ScriptedGrid([[_lambda(11, "a")]])
    assert _words(gather(grid, _messages(11, 12), 0.05)) == [(11, "a")]


def test_reply_that_came_with_the_deadline_counts() -> None:
    grid = ScriptedGrid([[_lambda(11, "a"), _lambda(12, "b")]])
    assert _words(gather(grid, _messages(11, 12), 0.0)) == [(11, "a"), (12, "b")]


@pytest.mark.parametrize(("ids", "reached"), [(["x", None, "y"], [11, 13]), ([], []), ([None, None, None], [])])
def test_message_that_could_not_be_sent_is_not_waited_for(ids: Sequence[str | None], reached: list[int]) -> None:
    """Flower gives None for a message that it could not push, and no ids when all together were too large."""
    grid = ScriptedGrid([[_lambda(node, "a") for node in reached]], ids)
    assert [node for node, _ in gather(grid, _messages(11, 12, 13), 60.0)] == reached


def test_nobody_to_ask() -> None:
    assert list(gather(ScriptedGrid([]), {}, 60.0)) == []


def _lambda(node: int, word: str):  # type: ignore[no-untyped-def]
    return lambda sent: _reply(sent[node], word)
