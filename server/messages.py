"""Between panfm's envelopes and Flower's messages, on the coordinator's side.

An envelope travels as one ConfigRecord (kind and JSON header) and one ArrayRecord (tensors as NumPy arrays, read without
pickle).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from panfm.errors import ProtocolError
from panfm.protocol import Envelope, JoinAnswer, Refusal, SiteUpdate, TrainTask, from_envelope, to_envelope


def encode_join_question(node: int) -> Message:
    """The message that asks a node who it is."""
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)


def encode_task(task: TrainTask, node: int) -> Message:
    """A round's task as the message to a node."""
    envelope = to_envelope(task)
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in envelope.tensors.items()})
    header = ConfigRecord({"kind": envelope.kind, "header": envelope.header})
    content = RecordDict({"envelope": header, "tensors": arrays})
    return Message(content, dst_node_id=node, message_type=MessageType.TRAIN, group_id=str(task.round))


def decode_reply(message: Message) -> JoinAnswer | SiteUpdate | Refusal:
    """The answer in a reply. Raises: ProtocolError when it holds none that this version knows."""
    records = message.content
    if "envelope" not in records.config_records or "tensors" not in records.array_records:
        raise ProtocolError("the reply lacks the records 'envelope' and 'tensors'; the site runs other code")
    envelope = records.config_records["envelope"]
    try:
        arrays = {name: array.numpy() for name, array in records.array_records["tensors"].items()}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        header = Envelope(kind=str(envelope["kind"]), header=str(envelope["header"]), tensors=tensors)
    except Exception as error:  # bytes of a peer: NumPy's reader alone raises six kinds, and none may end the round
        raise ProtocolError(
            f"the reply's records cannot be read ({type(error).__name__}); the site runs other code"
        ) from error
    answer = from_envelope(header)
    if isinstance(answer, TrainTask):
        raise ProtocolError("the reply holds a task instead of an answer; the site runs other code")
    return answer


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
