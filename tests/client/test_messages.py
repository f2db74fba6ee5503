"""What a site reads of a message: a task keeps its digest however it travelled, and anything else is a coded refusal."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.messages import decode, decode_task, encode_reply
from panfm.config import Encoding
from panfm.errors import ProtocolError
from panfm.protocol import ParcelLabel, ParcelRequest, Refusal, TaskParcel, TrainTask, expect, to_envelope
from panfm.site.egress import Released
from panfm.wire.encoding import as_received
from panfm.wire.parcels import Parcel, pack_tensors
from server.messages import (
    decode_reply,
    encode_join_question,
    encode_parcel,
    encode_request,
    encode_task,
    parcel_body,
)
from tests.client.small_study import SmallStudy, same_bits, signed_task, task_message, to_content


@pytest.fixture(autouse=True)
def _identity(study: SmallStudy) -> None:
    study.grid()


def _message(content: RecordDict) -> Message:
    return Message(content, dst_node_id=1000, message_type=MessageType.TRAIN)


def _train_task(message: Message) -> TrainTask:
    return expect(decode_task(message), TrainTask)


def test_task_keeps_its_digest_and_signature(study: SmallStudy) -> None:
    task = signed_task(study, "cardiac")
    came = _train_task(task_message(task, 1000))
    assert (came.digest(), came.signature) == (task.digest(), task.signature)
    assert same_bits(came.teacher, task.teacher)


@pytest.mark.parametrize("encoding", [Encoding.fp32, Encoding.bf16])
@pytest.mark.parametrize("level", [0, 1])
def test_task_in_many_parcels_keeps_its_digest(study: SmallStudy, encoding: Encoding, level: int) -> None:
    """What is signed and stored is what the site has, and not how it came."""
    task = signed_task(study, "cardiac")
    task = replace(task, student=as_received(task.student, encoding), teacher=as_received(task.teacher, encoding))
    tensors = {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(task, part).items()}
    parcels = list(pack_tensors(tensors, encoding, level, 50_000))
    assert len(parcels) > 3
    asked: list[tuple[str, int, list[str]]] = []

    def ahead(run: str, number: int, labels: Sequence[ParcelLabel]) -> list[Parcel]:
        asked.append((run, number, [label.sha256 for label in labels]))
        return parcels[:-1]

    message = encode_task(task, tuple(parcel.label for parcel in parcels), parcels[-1], 1000, 60.0)
    came = decode_task(message, ahead)
    assert came.digest() == task.digest()
    assert asked == [("small-1", 1, [parcel.sha256 for parcel in parcels[:-1]])]
    with pytest.raises(ProtocolError, match="did not come"):
        decode_task(message)
    with pytest.raises(ProtocolError, match="came twice"):
        decode_task(message, lambda _run, _number, _labels: [*parcels[:-2], parcels[0]])


def test_decoded_tensors_are_the_sites_own_memory(study: SmallStudy) -> None:
    message = task_message(signed_task(study, "cardiac"), 1000)
    name = "trunk.norm.weight"
    before = _train_task(message).student[name].clone()
    _train_task(message).student[name].zero_()
    assert torch.equal(_train_task(message).student[name], before)


def test_questions_come_with_what_belongs_to_them(study: SmallStudy) -> None:
    assert decode(encode_join_question(1000)) is None
    parcel = next(pack_tensors({"student/trunk.a": torch.ones(3)}, Encoding.fp32))
    ahead = TaskParcel(run="r", round=1, site="s", sha256=parcel.sha256).signed("ab")
    question = decode(encode_parcel(ahead, parcel, 1000, 60.0))
    assert question is not None
    assert (question.asked, question.body) == (ahead, parcel.body)
    request = ParcelRequest(run="r", round=1, site="s", sha256=parcel.sha256)
    question = decode(encode_request(request, 1000, 60.0))
    assert question is not None
    assert (question.asked, question.body) == (request, None)


def test_reply_takes_its_parcel_along(study: SmallStudy) -> None:
    parcel = next(pack_tensors({"trunk.a": torch.ones(3)}, Encoding.int8))
    refusal = Refusal(run="r", round=1, site="s", code="c", reason="r")
    for sent in (parcel, None):
        question = encode_join_question(1000)
        question.metadata.__dict__["_message_id"] = "asked"
        reply = encode_reply(Released(answer=refusal, parcel=sent), question)
        assert decode_reply(reply) == refusal
        assert parcel_body(reply) == (sent.body if sent else None)


def _in_parcel(body: bytes) -> RecordDict:
    array = Array(np.frombuffer(body, np.uint8))
    return RecordDict(
        {"envelope": ConfigRecord({"kind": "train_task", "header": "{}"}), "parcel": ArrayRecord({"body": array})}
    )


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task", "header": "{}"})}),
        RecordDict({"parcel": ArrayRecord({})}),
        to_content(to_envelope(Refusal(run="r", round=1, site="s", code="c", reason="r"))),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task"})}),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task", "header": "no JSON"})}),
        _in_parcel(b"abc"),
    ],
    ids=["empty", "no tensors", "no envelope", "a refusal", "no header", "no JSON", "junk"],
)
def test_anything_else_is_a_protocol_error(content: RecordDict) -> None:
    with pytest.raises(ProtocolError):
        decode_task(_message(content))


def test_task_without_its_tensors_or_with_others_is_a_protocol_error(study: SmallStudy) -> None:
    message = task_message(signed_task(study, "cardiac"), 1000)
    envelope, parcel = message.content["envelope"], message.content["parcel"]
    other = ArrayRecord({"body": Array(np.frombuffer(b"other", np.uint8))})
    wrong = [
        RecordDict({"envelope": envelope}),
        RecordDict({"envelope": envelope, "parcel": other}),
        RecordDict({"envelope": envelope, "tensors": parcel}),
        RecordDict({"envelope": envelope, "parcel": parcel, "more": other}),
        RecordDict({"envelope": envelope, "parcel": ArrayRecord({"content": Array(np.zeros(3, np.uint8))})}),
        RecordDict({"envelope": envelope, "parcel": ArrayRecord({"body": Array(np.zeros(3, np.float32))})}),
        RecordDict({"envelope": envelope, "parcel": ArrayRecord({"body": Array(np.zeros((3, 1), np.uint8))})}),
    ]
    for content in wrong:
        with pytest.raises(ProtocolError):
            decode_task(_message(content))
    header = str(envelope["header"])
    for changed in (header.replace('"parcels":[', '"parcels":[{},'), header.replace('"size_bytes":', '"size_bytes":-')):
        content = RecordDict({"envelope": ConfigRecord({"kind": "train_task", "header": changed}), "parcel": parcel})
        with pytest.raises(ProtocolError, match="malformed"):
            decode_task(_message(content))


@given(data=st.binary(max_size=100))
def test_any_bytes_in_an_array_are_a_protocol_error(data: bytes) -> None:
    array = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00" + data)
    header = ConfigRecord({"kind": "train_task", "header": "{}"})
    with pytest.raises(ProtocolError):
        decode_task(_message(RecordDict({"envelope": header, "parcel": ArrayRecord({"body": array})})))
