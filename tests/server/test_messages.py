"""Envelopes through Flower's messages and back, and whatever else a peer may put into a reply."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from client.messages import decode_task, encode_reply
from panfm.errors import ProtocolError
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate, TrainTask
from panfm.site.egress import Released
from server.messages import decode_reply, encode_join_question, encode_task, one_line, size_bytes
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


def test_task_arrives_bit_for_bit() -> None:
    task = TrainTask(
        run="r",
        round=3,
        site="north",
        recipe="a: 1",
        student=TENSORS,
        teacher={"trunk.a": torch.ones(2)},
        signature="ab",
    )
    message = encode_task(task, 1000)
    assert message.metadata.message_type == MessageType.TRAIN
    assert message.metadata.dst_node_id == 1000
    came = decode_task(message)
    assert came.digest() == task.digest()
    assert came.signature == "ab"
    assert same_bits(came.student, {name: tensor.contiguous() for name, tensor in TENSORS.items()})


@pytest.mark.parametrize(
    "answer",
    [
        JoinAnswer(site="north", organs=("brain",), protocol_version=1, panfm_version="0", num_subjects={"brain": 3}),
        Refusal(run="r", round=1, site="north", code="budget", reason="spent: ε = 3"),
    ],
)
def test_answers_without_tensors_arrive(answer: JoinAnswer | Refusal) -> None:
    assert decode_reply(encode_reply(Released(answer=answer), _question())) == answer


def test_update_arrives_bit_for_bit() -> None:
    update = SiteUpdate(
        run="r",
        round=1,
        site="north",
        task_digest="0",
        deltas=TENSORS,
        num_subjects=2,
        organ_subjects={"brain": 2},
        num_steps=1,
        metrics=metrics(loss=float("nan")),
    )
    came = decode_reply(encode_reply(Released(answer=update), _question()))
    assert isinstance(came, SiteUpdate)
    assert same_bits(came.deltas, {name: tensor.contiguous() for name, tensor in TENSORS.items()})


def test_what_was_decoded_is_the_coordinators_own_memory() -> None:
    update = SiteUpdate(
        run="r",
        round=1,
        site="s",
        task_digest="0",
        deltas={"trunk.a": torch.ones(2)},
        num_subjects=1,
        organ_subjects={},
        num_steps=1,
        metrics=metrics(),
    )
    reply = encode_reply(Released(answer=update), _question())
    for _ in range(2):
        came = decode_reply(reply)
        assert isinstance(came, SiteUpdate)
        assert came.deltas["trunk.a"].tolist() == [1.0, 1.0]
        came.deltas["trunk.a"].zero_()


def _saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00v\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
    + b"\n"
)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        _saved(np.array([object()])),
        _saved(np.array(["words"])),
        _saved(np.zeros(2, "datetime64[s]")),
        HUGE,
    ],
    ids=["nothing", "half a header", "a pickle", "words", "dates", "eight terabytes"],
)
def test_arrays_that_are_none_are_a_protocol_error(data: bytes) -> None:
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=data)
    header = ConfigRecord({"kind": "site_update", "header": "{}"})
    content = RecordDict({"envelope": header, "tensors": ArrayRecord({"deltas/trunk.a": array})})
    with pytest.raises(ProtocolError):
        decode_reply(Message(content, reply_to=_question()))


@given(
    data=st.binary(max_size=300),
    kind=st.sampled_from(["site_update", "refusal", "join_answer", "x", ""]),
    header=st.text(max_size=80),
)
def test_any_bytes_are_an_answer_or_a_protocol_error(data: bytes, kind: str, header: str) -> None:
    array = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00" + data)
    content = RecordDict(
        {"envelope": ConfigRecord({"kind": kind, "header": header}), "tensors": ArrayRecord({"deltas/x": array})}
    )
    with pytest.raises(ProtocolError):
        decode_reply(Message(content, reply_to=_question()))


def test_size_counts_tensors_and_headers_and_no_error() -> None:
    task = TrainTask(run="r", round=1, site="s", recipe="x" * 1000, student={"trunk.a": torch.zeros(100)}, teacher={})
    assert 400 + 1000 < size_bytes(encode_task(task, 1)) < 400 + 1000 + 500
    assert size_bytes(Message(Error(code=2, reason="words"), reply_to=_question())) == 0


@given(st.text())
def test_words_of_a_peer_become_one_printable_line(words: str) -> None:
    line = one_line(words)
    assert line.isprintable()
    assert len(line) <= 200
    assert line == line.strip()


def test_ordinary_words_are_left_as_they_are() -> None:
    assert one_line("budget: ε is spent; wait until 1 March") == "budget: ε is spent; wait until 1 March"
    assert one_line("a\x1b[31m\r\n\tb") == "a [31m b"
