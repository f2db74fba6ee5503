"""Sending messages and taking their replies as they come, without ever waiting past a deadline.

Flower's own send-and-receive holds all replies until the last; here each is handed over when it arrives. An error reply
names the SuperLink and not the node as its sender, so replies are matched by the message that they answer.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

POLL_S = 0.5
"""Between two looks for replies when none has come."""


def gather(grid: Grid, messages: Mapping[int, Message], timeout_s: float) -> Iterator[tuple[int, Message]]:
    """Send one message to each node and yield (node, reply) as they arrive.

    Args:
        messages: node -> message.
        timeout_s: replies that have not arrived by then are not waited for; their nodes are simply not yielded,
            and neither are nodes that could not be sent their message.
    """
    nodes = sorted(messages)
    deadline = time.monotonic() + timeout_s
    ids = list(grid.push_messages([messages[node] for node in nodes]))
    # Flower gives None for a message that it could not send, and no ids at all when the whole is too large.
    waiting = {message_id: node for message_id, node in zip(ids, nodes, strict=False) if message_id}
    while waiting:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:  # one answer a node: a second one, or one to another message, is nobody's
                yield node, reply
        if time.monotonic() > deadline:
            return
        if not replies:
            time.sleep(POLL_S)
