"""Messages that wait on disk: they come back whole and once, and nothing stays behind."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gc

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from simulation.local_grid import LocalGrid
from simulation.parked import Shelf


def _message(number: int = 0) -> Message:
    LocalGrid(ClientApp(), [], {}, {})  # names this run to Flower's messages
    body = ArrayRecord({"body": Array(np.full(1000, number, dtype=np.uint8))})
    content = RecordDict({"envelope": ConfigRecord({"kind": "train_task"}), "parcel": body})
    message = Message(content, dst_node_id=5, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "abc"
    return message


def test_a_message_comes_back_whole_and_its_label_holds_no_content() -> None:
    message, shelf = _message(), Shelf()
    parked = shelf.park(message)
    assert parked.label.metadata.message_id == "abc"
    assert not parked.label.content
    assert message.content.config_records["envelope"]["kind"] == "train_task", "the given one is as it was"
    came = parked.take()
    assert came.metadata.dst_node_id == 5
    assert came.content == message.content
    assert came.content is not message.content


def test_messages_come_back_in_any_order_and_leave_room_for_the_next() -> None:
    shelf = Shelf()
    for _ in range(3):
        messages = [_message(number) for number in range(4)]
        parked = [shelf.park(message) for message in messages]
        for place in (2, 0, 3, 1):
            assert parked[place].take().content == messages[place].content
    shelf.park(messages[0])
    assert shelf._file.tell() < 2 * 1500, "what was taken takes no room"


def test_file_goes_with_the_shelf() -> None:
    shelf = Shelf()
    shelf.park(_message())
    file = shelf._file
    del shelf
    gc.collect()
    assert file.closed
