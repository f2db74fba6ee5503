"""Between Flower's messages and panfm's envelopes, on the site's side.

An envelope travels as one ConfigRecord (kind and JSON header) and one ArrayRecord (tensors as NumPy arrays, read without
pickle).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from panfm.errors import ProtocolError
from panfm.protocol import Envelope, TrainTask, expect, from_envelope, to_envelope
from panfm.site.egress import Released


def decode_task(message: Message) -> TrainTask:
    """The task in a message. Raises: ProtocolError when it holds none."""
    records = message.content
    if "envelope" not in records.config_records or "tensors" not in records.array_records:
        raise ProtocolError(
            "expected a task with the records 'envelope' and 'tensors'; the coordinator runs other code"
        )
    envelope, arrays = records.config_records["envelope"], records.array_records["tensors"]
    try:
        tensors = {name: torch.from_numpy(array.numpy().copy()) for name, array in arrays.items()}
        sent = Envelope(kind=str(envelope["kind"]), header=str(envelope["header"]), tensors=tensors)
    except Exception as error:  # bytes of a peer: NumPy's reader alone raises six kinds
        raise ProtocolError(f"the task's records cannot be read ({type(error).__name__})") from error
    return expect(from_envelope(sent), TrainTask)


def encode_reply(released: Released, message: Message) -> Message:
    """What passed the egress gate, as the reply to a message: the only place where the client makes one."""
    envelope = to_envelope(released.answer)
    arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in envelope.tensors.items()})
    header = ConfigRecord({"kind": envelope.kind, "header": envelope.header})
    return Message(RecordDict({"envelope": header, "tensors": arrays}), reply_to=message)
