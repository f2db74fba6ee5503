"""Sending messages and taking their replies one at a time as they come, without ever waiting past a deadline.

Flower's own send-and-receive holds all replies until the last, and one look for all of them hands over all that are ready: with
large messages that is one model a site in memory. Here each is asked for by itself. An error reply names the SuperLink and not
the node as its sender, so replies are matched by the message that they answer. What was not answered in time stays on a list and
is taken off the wire when it comes, so that it can be named and takes no room at the SuperLink.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

T = TypeVar("T")

POLL_S = 2.0
"""Longest pause between two looks for replies when none has come (seconds)."""
PAUSE_SHARE = 0.02
"""A pause is this share of the time since the last reply: it never makes a wait noticeably longer."""
_SHORTEST_PAUSE_S = 0.005


class Mailbox(Generic[T]):
    """Messages that were sent and not answered yet, each under a label of its sender's choice."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._waiting: dict[str, T] = {}
        self._last_reply = time.monotonic()

    def send(self, message: Message, label: T) -> bool:
        """Send one message; False when Flower could not."""
        ids = list(self._grid.push_messages([message]))
        # Flower gives None for a message that it could not send, and no ids at all when it is too large.
        if not ids or not ids[0]:
            return False
        self._waiting[ids[0]] = label
        return True

    def waiting(self) -> list[T]:
        """Labels of the messages that have no reply yet."""
        return list(self._waiting.values())

    def look(self) -> Iterator[tuple[T, Message]]:
        """One look for the reply to each waiting message, in the order in which they were sent; at most one in memory."""
        for message_id in list(self._waiting):
            for reply in self._grid.pull_messages([message_id]):
                label = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                if label is not None:  # one answer a message: a second one, or one to another message, is nobody's
                    self._last_reply = time.monotonic()
                    yield label, reply
                del reply  # before the next one comes: it may be large

    def rest(self, until: float) -> None:
        """Pause before the next look, at most until a moment of the monotonic clock."""
        now = time.monotonic()
        pause_s = min(max(PAUSE_SHARE * (now - self._last_reply), _SHORTEST_PAUSE_S), POLL_S, until - now)
        if pause_s > 0:
            time.sleep(pause_s)
