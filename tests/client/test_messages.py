"""What a site reads from a message, and that anything but a task is a protocol error (replies: the server's own test)."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.messages import decode_task
from panfm.errors import ProtocolError
from panfm.protocol import Refusal, to_envelope
from server.messages import encode_task
from tests.client.small_study import SmallStudy, signed_task, to_content


@pytest.fixture(autouse=True)
def _identity(study: SmallStudy) -> None:
    study.grid()


def _message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1000, message_type=MessageType.TRAIN)


def test_task_keeps_its_digest_and_signature(study: SmallStudy) -> None:
    task = signed_task(study, "cardiac")
    came = decode_task(encode_task(task, 1000))
    assert (came.digest(), came.signature) == (task.digest(), task.signature)


def test_decoded_tensors_are_the_sites_own_memory(study: SmallStudy) -> None:
    message = encode_task(signed_task(study, "cardiac"), 1000)
    name = "trunk.norm.weight"
    before = decode_task(message).student[name].clone()
    decode_task(message).student[name].zero_()
    assert torch.equal(decode_task(message).student[name], before)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task", "header": "{}"})}),
        RecordDict({"tensors": ArrayRecord({})}),
        to_content(to_envelope(Refusal(run="r", round=1, site="s", code="c", reason="r"))),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task"}), "tensors": ArrayRecord({})}),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task", "header": "no JSON"}), "tensors": ArrayRecord({})}),
    ],
    ids=["empty", "no tensors", "no envelope", "a refusal", "no header", "no JSON"],
)
def test_anything_else_is_a_protocol_error(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        decode_task(_message(content))


@given(data=st.binary(max_size=100))
def test_any_bytes_in_an_array_are_a_protocol_error(data: bytes) -> None:
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00" + data)
    header = ConfigRecord({"kind": "train_task", "header": "{}"})
    with pytest.raises(ProtocolError):
        decode_task(_message(RecordDict({"envelope": header, "tensors": ArrayRecord({"student/x": array})})))
