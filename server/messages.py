"""Between panfm's messages and Flower's, on the coordinator's side.

The content is one ConfigRecord, `envelope` (kind and JSON header), and, where tensors travel, one ArrayRecord, `parcel`, with one
array `body`: the bytes of a parcel (`panfm.wire.parcels`). They are taken out of Flower's array without NumPy's reader.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from panfm.errors import ProtocolError
from panfm.protocol import (
    Answer,
    Envelope,
    EvaluateTask,
    ParcelLabel,
    ParcelRequest,
    Task,
    TaskParcel,
    TrainTask,
    from_envelope,
    to_envelope,
)
from panfm.wire.parcels import Parcel

_OTHER_CODE = "the site runs other code"


def encode_join_question(node: int) -> Message:
    """The message that asks a node who it is."""
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)


def encode_task(task: Task, labels: tuple[ParcelLabel, ...], last: Parcel, node: int, ttl_s: float) -> Message:
    """A round's task as the message to a node.

    Args:
        labels: of all parcels of its tensors, in order.
        last: the last of them, which travels along; the others went ahead.
        ttl_s: how long the SuperLink keeps the message and its reply.
    """
    kind = MessageType.TRAIN if isinstance(task, TrainTask) else MessageType.EVALUATE
    return _encode(replace(task, student={}, teacher={}, parcels=labels), last, kind, node, ttl_s)


def encode_parcel(ahead: TaskParcel, parcel: Parcel, node: int, ttl_s: float) -> Message:
    """A parcel that goes ahead of its task."""
    return _encode(ahead, parcel, MessageType.QUERY, node, ttl_s)


def encode_request(request: ParcelRequest, node: int, ttl_s: float) -> Message:
    """The question for another parcel of an answer."""
    return _encode(request, None, MessageType.QUERY, node, ttl_s)


def decode_reply(message: Message) -> Answer:
    """The answer in a reply, without its tensors. Raises: ProtocolError when it holds none that this version knows."""
    records = message.content.config_records
    if "envelope" not in records:
        raise ProtocolError(f"the reply lacks the record 'envelope'; {_OTHER_CODE}")
    try:
        kind, header = str(records["envelope"]["kind"]), str(records["envelope"]["header"])
    except KeyError as error:
        raise ProtocolError(f"the reply's envelope lacks {error}; {_OTHER_CODE}") from error
    answer = from_envelope(Envelope(kind=kind, header=header))
    if isinstance(answer, TrainTask | EvaluateTask | TaskParcel | ParcelRequest):
        raise ProtocolError(f"the reply holds a task or a question instead of an answer; {_OTHER_CODE}")
    return answer


def parcel_body(message: Message) -> bytes | None:
    """The bytes of the parcel in a reply; None where it holds none. Raises: ProtocolError when it holds something else."""
    arrays = [(name, array) for record in message.content.array_records.values() for name, array in record.items()]
    if not arrays:
        return None
    if "parcel" not in message.content.array_records or [name for name, _ in arrays] != ["body"]:
        raise ProtocolError(f"the reply's tensors are not in a parcel; {_OTHER_CODE}")
    return _bytes_of(arrays[0][1].data)


def one_line(words: str) -> str:
    """A peer's words as one printable line of at most 200 characters, fit for a record and a terminal."""
    shown = "".join(character if character.isprintable() else " " for character in words)
    return " ".join(shown.split())[:200]


def size_bytes(message: Message) -> int:
    """Bytes of the tensors and headers that a message carries."""
    if message.has_error():
        return 0
    arrays = (array for record in message.content.array_records.values() for array in record.values())
    headers = (str(value) for record in message.content.config_records.values() for value in record.values())
    return sum(len(array.data) for array in arrays) + sum(len(header.encode()) for header in headers)


def _encode(
    message: Task | TaskParcel | ParcelRequest, parcel: Parcel | None, kind: str, node: int, ttl_s: float
) -> Message:
    envelope = to_envelope(message)
    content = RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    if parcel is not None:
        content["parcel"] = ArrayRecord({"body": Array(np.frombuffer(parcel.body, np.uint8))})
    return Message(content, dst_node_id=node, message_type=kind, group_id=str(message.round), ttl=ttl_s)


def _bytes_of(saved: bytes) -> bytes:
    """The content of a one-dimensional array of bytes as NumPy saves it; its header says how long it must be."""
    reader = BytesIO(saved)
    try:
        if np.lib.format.read_magic(reader) != (1, 0):
            raise ValueError("not the first version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(reader)
        if dtype != np.uint8 or shape != (len(saved) - reader.tell(),):
            raise ValueError("not as many bytes as it says")
    except Exception as error:  # bytes of a peer: NumPy's reader alone raises six kinds, and none may end the round
        raise ProtocolError(f"the reply's parcel cannot be read ({type(error).__name__}); {_OTHER_CODE}") from error
    return saved[reader.tell() :]
