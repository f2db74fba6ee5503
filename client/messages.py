"""Between Flower's messages and panfm's, on the site's side.

The content is one ConfigRecord, `envelope` (kind and JSON header), and, where tensors travel, one ArrayRecord, `parcel`, with one
array `body`: the bytes of a parcel (`panfm.wire.parcels`). They are taken out of Flower's array without NumPy's reader.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from panfm import protocol
from panfm.errors import ProtocolError
from panfm.protocol import Envelope, EvaluateTask, ParcelLabel, Task, TrainTask, from_envelope, to_envelope
from panfm.site.egress import Released
from panfm.wire.parcels import Parcel, unpack_tensors

_OTHER_CODE = "the coordinator runs other code"

Ahead = Callable[[str, int, Sequence[ParcelLabel]], Sequence[Parcel]]
"""Where the parcels are that came before their task: (run, round, their labels) -> the parcels."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the coordinator sent, with its tensors still packed."""

    envelope: Envelope
    asked: protocol.Message
    """Without its tensors."""
    body: bytes | None
    """Of the parcel that came along."""


def decode(message: Message) -> Question | None:
    """What the coordinator asks; None when it asks who the site is. Raises: ProtocolError when it is nothing that panfm knows."""
    records = message.content
    if not records:
        return None
    if "envelope" not in records.config_records:
        raise ProtocolError(f"expected a message with the record 'envelope'; {_OTHER_CODE}")
    try:
        kind, header = (str(records.config_records["envelope"][name]) for name in ("kind", "header"))
    except KeyError as error:
        raise ProtocolError(f"the message's envelope lacks {error}; {_OTHER_CODE}") from error
    envelope = Envelope(kind=kind, header=header)
    return Question(envelope, from_envelope(envelope), _body(records))


def decode_task(message: Message, ahead: Ahead = lambda _run, _round, _labels: ()) -> Task:
    """The task in a message, whole.

    Args:
        ahead: gives the parcels that came before; without it, only the one that comes along is there.
    Raises: ProtocolError when it holds none, or not all of its parcels are there or sound.
    """
    question = decode(message)
    if question is None or not isinstance(question.asked, TrainTask | EvaluateTask) or question.body is None:
        raise ProtocolError(f"expected a task and a parcel of its tensors; {_OTHER_CODE}")
    task = question.asked
    if not task.parcels:
        raise ProtocolError(f"a task that names none of its parcels; {_OTHER_CODE}")
    parcels = [*ahead(task.run, task.round, task.parcels[:-1]), Parcel(question.body, task.parcels[-1].sha256)]
    if len(parcels) != len(task.parcels):
        raise ProtocolError("a parcel of the task did not come")
    envelope = question.envelope
    whole = from_envelope(Envelope(kind=envelope.kind, header=envelope.header, tensors=unpack_tensors(parcels)))
    assert isinstance(whole, TrainTask | EvaluateTask)
    return whole


def encode_reply(released: Released, message: Message) -> Message:
    """What passed the egress gate, as the reply to a message: the only place where the client makes one."""
    envelope = to_envelope(released.answer)
    content = RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    if released.parcel is not None:
        content["parcel"] = ArrayRecord({"body": Array(np.frombuffer(released.parcel.body, np.uint8))})
    return Message(content, reply_to=message)


def _body(records: RecordDict) -> bytes | None:
    """The bytes of the parcel that came along; None where there is none."""
    arrays = [(name, array) for record in records.array_records.values() for name, array in record.items()]
    if not arrays:
        return None
    if "parcel" not in records.array_records or [name for name, _ in arrays] != ["body"]:
        raise ProtocolError(f"the message's tensors are not in a parcel; {_OTHER_CODE}")
    return _bytes_of(arrays[0][1].data)


def _bytes_of(saved: bytes) -> bytes:
    """The content of a one-dimensional array of bytes as NumPy saves it; its header says how long it must be."""
    reader = BytesIO(saved)
    try:
        if np.lib.format.read_magic(reader) != (1, 0):
            raise ValueError("not the first version of the format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(reader)
        if dtype != np.uint8 or shape != (len(saved) - reader.tell(),):
            raise ValueError("not as many bytes as it says")
    except Exception as error:  # bytes of a peer: NumPy's reader alone raises six kinds
        raise ProtocolError(f"the message's parcel cannot be read ({type(error).__name__}); {_OTHER_CODE}") from error
    return saved[reader.tell() :]
