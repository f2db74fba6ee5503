"""Messages through Flower and back, and whatever else a peer may put into a reply."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from client.messages import decode, decode_task, encode_reply
from panfm.errors import ProtocolError
from panfm.protocol import (
    Answer,
    EvaluateTask,
    JoinAnswer,
    ParcelKept,
    ParcelRequest,
    Refusal,
    SiteUpdate,
    Task,
    TaskParcel,
    TrainTask,
)
from panfm.site.egress import Released
from panfm.wire.parcels import Parcel, pack, parcel_of, unpack
from server.messages import (
    decode_reply,
    encode_join_question,
    encode_parcel,
    encode_request,
    encode_task,
    one_line,
    parcel_body,
    size_bytes,
)
from tests.client.small_study import metrics, same_bits


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def _question() -> Message:
    message = encode_join_question(1000)
    message.metadata.__dict__["_message_id"] = "asked"
    return message


TENSORS = {
    "trunk.a": torch.tensor([[1.5, -0.0], [float("nan"), float("inf")]]),
    "trunk.scalar": torch.tensor(3.0),
    "heads.empty": torch.zeros(0, 4),
    "organs.brain.t": torch.arange(6.0).reshape(2, 3).t(),
}


def _parcel(**tensors: torch.Tensor) -> Parcel:
    (parcel,) = pack(tensors)
    return parcel


def _task_parcel() -> Parcel:
    parts = {"student": TENSORS, "teacher": {"trunk.a": torch.ones(2)}}
    (parcel,) = pack({f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()})
    return parcel


@pytest.mark.parametrize(("kind", "handler"), [(TrainTask, MessageType.TRAIN), (EvaluateTask, MessageType.EVALUATE)])
def test_task_arrives_bit_for_bit(kind: type[Task], handler: str) -> None:
    task = kind(
        run="r",
        round=3,
        site="north",
        recipe="a: 1",
        student=TENSORS,
        teacher={"trunk.a": torch.ones(2)},
        signature="ab",
    )
    parcel = _task_parcel()
    message = encode_task(task, (parcel.label,), parcel, 1000, 60.0)
    about = message.metadata
    assert (about.message_type, about.dst_node_id, about.group_id, about.ttl) == (handler, 1000, "3", 60.0)
    came = decode_task(message)
    assert type(came) is kind
    assert came.digest() == task.digest()
    assert came.signature == "ab"
    assert same_bits(came.student, {name: tensor.contiguous() for name, tensor in TENSORS.items()})


def test_parcel_ahead_and_request_arrive() -> None:
    parcel = _parcel(x=torch.ones(3))
    ahead = TaskParcel(run="r", round=2, site="north", sha256=parcel.sha256, signature="ab")
    request = ParcelRequest(run="r", round=2, site="north", sha256=parcel.sha256, signature="ab")
    for asked, message in (
        (ahead, encode_parcel(ahead, parcel, 1000, 60.0)),
        (request, encode_request(request, 1000, 60.0)),
    ):
        came = decode(message)
        assert message.metadata.message_type == MessageType.QUERY
        assert came is not None
        assert came.asked == asked
        assert came.body == (parcel.body if asked is ahead else None)


UPDATE = SiteUpdate(
    run="r",
    round=1,
    site="north",
    task_digest="0",
    deltas={},
    num_subjects=2,
    organ_subjects={"brain": 2},
    num_steps=1,
    metrics=metrics(loss=0.25),
    parcels=(_parcel(x=torch.ones(1)).label,),
)


@pytest.mark.parametrize(
    "answer",
    [
        JoinAnswer(site="north", organs=("brain",), protocol_version=1, panfm_version="0", num_subjects={"brain": 3}),
        Refusal(run="r", round=1, site="north", code="budget", reason="spent: ε = 3"),
        ParcelKept(run="r", round=1, site="north", sha256="0" * 64),
        UPDATE,
    ],
)
def test_answers_arrive(answer: Answer) -> None:
    reply = encode_reply(Released(answer=answer), _question())
    assert decode_reply(reply) == answer
    assert parcel_body(reply) is None


def test_parcel_of_an_update_arrives_bit_for_bit() -> None:
    parcel = _parcel(**TENSORS)
    reply = encode_reply(Released(answer=UPDATE, parcel=parcel), _question())
    assert decode_reply(reply) == UPDATE
    body = parcel_body(reply)
    assert body == parcel.body
    came = unpack(parcel_of(body))
    assert same_bits(came, {name: tensor.contiguous() for name, tensor in TENSORS.items()})


@pytest.mark.parametrize("message", ["a task", "a request"])
def test_what_only_a_coordinator_says_is_no_answer(message: str) -> None:
    task = TrainTask(run="r", round=1, site="s", recipe="", student={}, teacher={})
    request = ParcelRequest(run="r", round=1, site="s", sha256="0" * 64)
    parcel = _parcel(x=torch.ones(1))
    said = {
        "a task": encode_task(task, (parcel.label,), parcel, 1, 1.0),
        "a request": encode_request(request, 1, 1.0),
    }[message]
    with pytest.raises(ProtocolError, match="instead of an answer"):
        decode_reply(Message(said.content, reply_to=_question()))


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (8000000000000,), }".ljust(117)
    + b"\n"
)

NO_BYTES = {
    "nothing": b"",
    "half a header": b"\x93NUMPY",
    "a pickle": _saved(np.array([object()])),
    "a pickle in place of its bytes": HUGE.replace(b"|u1", b"|O ") + bytes(9),
    "words": _saved(np.array(["words"])),
    "numbers": _saved(np.zeros(8, "<f4")),
    "a table": _saved(np.zeros((2, 2), np.uint8)),
    "eight terabytes": HUGE,
    "one byte too few": _saved(np.zeros(8, np.uint8))[:-1],
    "one byte too many": _saved(np.zeros(8, np.uint8)) + b"x",
}


def _with_body(data: bytes) -> Message:
    array = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=data)
    header = ConfigRecord({"kind": "site_update", "header": "{}"})
    content = RecordDict({"envelope": header, "parcel": ArrayRecord({"body": array})})
    return Message(content, reply_to=_question())


@pytest.mark.parametrize("what", NO_BYTES)
def test_array_that_is_no_row_of_bytes_is_a_protocol_error(what: str) -> None:
    with pytest.raises(ProtocolError):
        parcel_body(_with_body(NO_BYTES[what]))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_parcels_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parcel_body(_with_body(b"\x93NUMPY\x01\x00" + data))
    assert parcel_body(_with_body(_saved(np.frombuffer(data, np.uint8)))) == data


@given(
    kind=st.sampled_from(["site_update", "refusal", "join_answer", "parcel_kept", "train_task", "x", ""]),
    header=st.text(max_size=80),
)
def test_any_words_are_an_answer_or_a_protocol_error(kind: str, header: str) -> None:
    content = RecordDict({"envelope": ConfigRecord({"kind": kind, "header": header})})
    with pytest.raises(ProtocolError):
        decode_reply(Message(content, reply_to=_question()))


def test_size_counts_tensors_and_headers_and_no_error() -> None:
    task = TrainTask(run="r", round=1, site="s", recipe="x" * 1000, student={}, teacher={})
    parcel = _parcel(x=torch.zeros(100))
    assert 400 + 1000 < size_bytes(encode_task(task, (parcel.label,), parcel, 1, 1.0)) < 400 + 1000 + 700
    assert size_bytes(Message(Error(code=2, reason="words"), reply_to=_question())) == 0


def test_tensors_of_a_task_travel_in_parcels_only() -> None:
    """A task's own tensors would make a message as large as the model."""
    task = TrainTask(run="r", round=1, site="s", recipe="", student={"trunk.a": torch.zeros(100_000)}, teacher={})
    parcel = _parcel(x=torch.zeros(1))
    assert size_bytes(encode_task(replace(task, teacher=task.student), (parcel.label,), parcel, 1, 1.0)) < 1000


@given(st.text())
def test_words_of_a_peer_become_one_printable_line(words: str) -> None:
    line = one_line(words)
    assert line.isprintable()
    assert len(line) <= 200
    assert line == line.strip()


def test_ordinary_words_are_left_as_they_are() -> None:
    assert one_line("budget: ε is spent; wait until 1 March") == "budget: ε is spent; wait until 1 March"
    assert one_line("a\x1b[31m\r\n\tb") == "a [31m b"
