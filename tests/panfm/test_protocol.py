"""What crosses the wire: it comes back as it went, and nonsense from a peer is always a ProtocolError."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.errors import ProtocolError
from panfm.protocol import (
    PROTOCOL_VERSION,
    AnswerParcel,
    Envelope,
    EvaluateTask,
    EvaluationMetrics,
    JoinAnswer,
    Message,
    ParcelKept,
    ParcelLabel,
    ParcelRequest,
    PrivacySpent,
    Refusal,
    SiteReport,
    SiteUpdate,
    TaskParcel,
    TrainMetrics,
    TrainTask,
    expect,
    from_envelope,
    to_envelope,
)
from panfm.update import digest

words = st.text(max_size=12)
counts = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False)
per_organ = st.dictionaries(words, numbers, max_size=3)
organ_counts = st.dictionaries(words, counts, max_size=3)
tensors = st.dictionaries(
    st.text(min_size=1, max_size=12),
    st.builds(
        lambda row, dtype: torch.tensor(row).to(dtype),
        st.lists(st.floats(-100, 100), max_size=3),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    ),
    max_size=3,
)
labels = st.lists(
    st.builds(
        ParcelLabel,
        sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
        size_bytes=st.integers(1, 2**63 - 1),
    ),
    max_size=3,
).map(tuple)
joins = st.builds(
    JoinAnswer,
    site=words,
    organs=st.lists(words, max_size=3).map(tuple),
    protocol_version=counts,
    panfm_version=words,
    num_subjects=organ_counts,
)
tasks = st.builds(
    TrainTask,
    run=words,
    round=counts,
    site=words,
    recipe=words,
    student=tensors,
    teacher=tensors,
    parcels=labels,
    protocol_version=counts,
    signature=words,
)
metrics = st.builds(
    TrainMetrics,
    loss=numbers,
    loss_patch=numbers,
    loss_organ=st.none() | numbers,
    collapse_loss=numbers,
    gradient_norm=numbers,
    share=per_organ,
    lift=per_organ,
    masked_rate=per_organ,
    share_entropy=st.none() | numbers,
    effective_rank=per_organ,
    spread=per_organ,
    seconds=numbers,
)
spent = st.builds(PrivacySpent, epsilon=numbers, delta=numbers, budget=numbers, ledger_head=words)
updates = st.builds(
    SiteUpdate,
    run=words,
    round=counts,
    site=words,
    task_digest=words,
    deltas=tensors,
    num_subjects=counts,
    organ_subjects=organ_counts,
    num_steps=counts,
    metrics=st.none() | metrics,
    privacy=st.none() | spent,
    parcels=labels,
)
evaluate_tasks = st.builds(
    EvaluateTask,
    run=words,
    round=counts,
    site=words,
    recipe=words,
    student=tensors,
    teacher=tensors,
    parcels=labels,
    protocol_version=counts,
    signature=words,
)
evaluation_metrics = st.builds(
    EvaluationMetrics,
    loss=numbers,
    loss_patch=numbers,
    loss_organ=st.none() | numbers,
    collapse_loss=numbers,
    share=per_organ,
    lift=per_organ,
    share_entropy=st.none() | numbers,
    probes=per_organ,
    seconds=numbers,
)
reports = st.builds(
    SiteReport,
    run=words,
    round=counts,
    site=words,
    task_digest=words,
    num_subjects=counts,
    organ_subjects=organ_counts,
    metrics=evaluation_metrics,
)
refusals = st.builds(Refusal, run=words, round=counts, site=words, code=words, reason=words)
questions = st.one_of(
    *(
        st.builds(kind, run=words, round=counts, site=words, sha256=words, protocol_version=counts, signature=words)
        for kind in (TaskParcel, ParcelRequest)
    ),
    *(st.builds(kind, run=words, round=counts, site=words, sha256=words) for kind in (ParcelKept, AnswerParcel)),
)
messages: st.SearchStrategy[Message] = st.one_of(joins, tasks, updates, evaluate_tasks, reports, questions, refusals)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
kinds = st.sampled_from(
    [
        *("join_answer", "train_task", "site_update", "evaluate_task", "site_report", "refusal"),
        *("task_parcel", "parcel_kept", "parcel_request", "answer_parcel"),
    ]
)
TENSOR_FIELDS = ("student", "teacher", "deltas")


def _plain(message: Message) -> dict[str, Any]:
    return {f.name: getattr(message, f.name) for f in fields(message) if f.name not in TENSOR_FIELDS}


def _digests(message: Message) -> dict[str, str]:
    return {name: digest(getattr(message, name)) for name in TENSOR_FIELDS if hasattr(message, name)}


@given(message=messages)
def test_every_message_comes_back_as_it_went(message: Message) -> None:
    envelope = to_envelope(message)
    received = from_envelope(Envelope(kind=envelope.kind, header=envelope.header, tensors=envelope.tensors))
    assert type(received) is type(message)
    assert _plain(received) == _plain(message)
    assert _digests(received) == _digests(message)
    assert to_envelope(received).header == envelope.header


@given(kind=kinds, header=st.text() | json_values.map(json.dumps))
def test_nonsense_is_a_protocol_error(kind: str, header: str) -> None:
    with pytest.raises(ProtocolError, match=f"malformed {kind}"):
        from_envelope(Envelope(kind=kind, header=header))


@given(message=messages, data=st.data(), value=json_values)
def test_a_changed_field_is_read_right_or_is_a_protocol_error(
    message: Message, data: st.DataObject, value: object
) -> None:
    envelope = to_envelope(message)
    header = json.loads(envelope.header)
    name = data.draw(st.sampled_from(sorted(header)))
    header[name] = value
    try:
        received = from_envelope(replace(envelope, header=json.dumps(header)))
    except ProtocolError:
        return
    assert to_envelope(received).header.isascii()
    assert json.loads(to_envelope(received).header).keys() == header.keys()
    assert type(getattr(received, name)) in (type(getattr(message, name)), float, int, type(None))


@given(message=messages, data=st.data(), extra=st.text(max_size=8))
def test_a_missing_or_unknown_field_is_named(message: Message, data: st.DataObject, extra: str) -> None:
    envelope = to_envelope(message)
    header = json.loads(envelope.header)
    missing = data.draw(st.sampled_from(sorted(header)))
    with pytest.raises(ProtocolError, match=rf"field '{missing}' is missing"):
        from_envelope(replace(envelope, header=json.dumps({k: v for k, v in header.items() if k != missing})))
    if extra not in header:
        with pytest.raises(ProtocolError, match="is unknown") as caught:
            from_envelope(replace(envelope, header=json.dumps({**header, extra: 1})))
        assert str(caught.value).isprintable()


def _join(**changed: object) -> Envelope:
    message = JoinAnswer(site="a", organs=("brain",), protocol_version=1, panfm_version="0", num_subjects={"brain": 3})
    envelope = to_envelope(message)
    return replace(envelope, header=json.dumps({**json.loads(envelope.header), **changed}))


@pytest.mark.parametrize(
    "changed",
    [
        {"organs": "brain"},  # once read as five organs of one letter
        {"organs": {"brain": 1}},
        {"organs": ["brain", 1]},
        {"site": None},
        {"site": "\ud800"},  # valid JSON, and no log could be written with it
        {"site": ["a"]},
        {"protocol_version": True},
        {"protocol_version": 1.0},
        {"protocol_version": 2**63},  # could become infinite as a float
        {"num_subjects": {"brain": "3"}},
        {"num_subjects": {"brain": 3.5}},
        {"num_subjects": {"brain": False}},
        {"num_subjects": [["brain", 3]]},
    ],
)
def test_a_field_of_another_type_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="malformed join_answer"):
        from_envelope(_join(**changed))
    assert from_envelope(_join()) == from_envelope(_join(organs=["brain"]))


@pytest.mark.parametrize("header", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "{}" * 2, "\x00", "nul"])
def test_hostile_json_is_refused(header: str) -> None:
    with pytest.raises(ProtocolError, match="malformed refusal"):
        from_envelope(Envelope(kind="refusal", header=header))


@given(update=updates, told=metrics, value=json_values.filter(lambda value: value is not None))
def test_metrics_must_be_metrics(update: SiteUpdate, told: TrainMetrics, value: object) -> None:
    envelope = to_envelope(replace(update, metrics=told))
    header = json.loads(envelope.header)
    for wrong in (value, {**header["metrics"], "loss": str(value)}, {**header["metrics"], "age": 71.0}):
        with pytest.raises(ProtocolError, match="malformed site_update"):
            from_envelope(replace(envelope, header=json.dumps({**header, "metrics": wrong})))


@pytest.mark.parametrize("name", ["trunk.w", "student/trunk.w", "deltas/", "deltas", "/trunk.w", ""])
def test_a_tensor_of_another_part_is_refused(name: str) -> None:
    envelope = to_envelope(_update())
    with pytest.raises(ProtocolError, match="unexpected tensor"):
        from_envelope(replace(envelope, tensors={**envelope.tensors, name: torch.ones(1)}))


def test_tensors_do_not_travel_in_the_header() -> None:
    envelope = to_envelope(_update())
    header = {**json.loads(envelope.header), "deltas": {"trunk.w": [1.0]}}
    with pytest.raises(ProtocolError, match="field 'deltas' is unknown"):
        from_envelope(replace(envelope, header=json.dumps(header)))


def test_an_unknown_kind_says_to_update() -> None:
    with pytest.raises(ProtocolError, match=r"unknown kind of message 'rumour'.*update panfm"):
        from_envelope(Envelope(kind="rumour", header="{}"))


def test_expect_gives_the_kind_or_says_what_came() -> None:
    refusal: Message = Refusal(run="r", round=1, site="a", code="no", reason="no")
    assert expect(refusal, Refusal) is refusal
    with pytest.raises(ProtocolError, match="expected SiteUpdate, got Refusal"):
        expect(refusal, SiteUpdate)


def _task(**values: Any) -> TrainTask:
    weights: dict[str, Tensor] = {"trunk.w": torch.ones(2)}
    task = TrainTask(run="r", round=1, site="a", recipe="seed: 1", student=weights, teacher=weights)
    return replace(task, **values)


def _update() -> SiteUpdate:
    empty: dict[str, float] = {}
    told = TrainMetrics(
        loss=1.0,
        loss_patch=1.0,
        loss_organ=None,
        collapse_loss=1.0,
        gradient_norm=1.0,
        share=empty,
        lift=empty,
        masked_rate=empty,
        share_entropy=None,
        effective_rank=empty,
        spread=empty,
        seconds=1.0,
    )
    return SiteUpdate(
        run="r",
        round=1,
        site="a",
        task_digest="",
        deltas={"trunk.w": torch.ones(2)},
        num_subjects=1,
        organ_subjects={"brain": 1},
        num_steps=1,
        metrics=told,
    )


@given(update=updates, told=spent, value=json_values.filter(lambda value: value is not None))
def test_what_is_spent_is_told_whole_or_not_at_all(update: SiteUpdate, told: PrivacySpent, value: object) -> None:
    envelope = to_envelope(replace(update, privacy=told))
    header = json.loads(envelope.header)
    short = {name: number for name, number in header["privacy"].items() if name != "delta"}
    for wrong in (value, {**header["privacy"], "epsilon": str(value)}, {**header["privacy"], "age": 71.0}, short):
        with pytest.raises(ProtocolError, match="malformed site_update"):
            from_envelope(replace(envelope, header=json.dumps({**header, "privacy": wrong})))


@pytest.mark.parametrize(
    "label",
    [
        {},
        {"sha256": "ab" * 32},
        {"sha256": "ab" * 32, "size_bytes": 0},
        {"sha256": "ab" * 32, "size_bytes": True},
        {"sha256": "ab" * 31, "size_bytes": 1},
        {"sha256": "AB" * 32, "size_bytes": 1},
        {"sha256": "ab" * 32, "size_bytes": 1, "name": "x"},
        ["ab" * 32, 1],
        "ab" * 32,
        None,
    ],
)
def test_a_label_names_a_parcel_or_the_message_is_malformed(label: object) -> None:
    envelope = to_envelope(_update())
    header = {**json.loads(envelope.header), "parcels": [label]}
    with pytest.raises(ProtocolError, match="malformed site_update"):
        from_envelope(replace(envelope, header=json.dumps(header)))


@pytest.mark.parametrize("kind", [TaskParcel, ParcelRequest])
def test_a_parcels_digest_covers_all_but_the_signature(kind: type[TaskParcel] | type[ParcelRequest]) -> None:
    asked = kind(run="r", round=1, site="a", sha256="ab" * 32)
    changed: list[dict[str, Any]] = [
        {},
        {"run": "s"},
        {"round": 2},
        {"site": "b"},
        {"sha256": "cd" * 32},
        {"protocol_version": 0},
    ]
    assert len({replace(asked, **values).digest() for values in changed}) == len(changed)
    assert {f.name for f in fields(kind)} - {name for values in changed for name in values} == {"signature"}
    assert asked.signed("ab").digest() == asked.digest()


def test_how_a_task_travels_is_no_part_of_its_digest() -> None:
    label = ParcelLabel(sha256="ab" * 32, size_bytes=7)
    assert _task(parcels=(label,)).digest() == _task().digest()


def test_a_tasks_digest_covers_all_but_the_signature() -> None:
    changed: list[dict[str, object]] = [
        {},
        {"run": "s"},
        {"round": 2},
        {"site": "b"},
        {"recipe": "seed: 2"},
        {"protocol_version": PROTOCOL_VERSION + 1},
        {"student": {"trunk.w": torch.zeros(2)}},
        {"teacher": {"trunk.w": torch.zeros(2)}},
        {"student": {"trunk.v": torch.ones(2)}},
        {"student": {}},
        {"voted": {"trunk": 1}},
        {"ledger_witness": "ab" * 32 + ":7"},
    ]
    assert len({_task(**values).digest() for values in changed}) == len(changed)
    assert {f.name for f in fields(TrainTask)} - {name for values in changed for name in values} == {
        "signature",
        "parcels",
    }
    assert _task().signed("ab").digest() == _task().digest()
    assert _task().signed("ab").signature == "ab"


@given(task=tasks)
def test_the_digest_survives_the_wire(task: TrainTask) -> None:
    assert expect(from_envelope(to_envelope(task)), TrainTask).digest() == task.digest()


def test_an_evaluation_is_signed_as_such_and_covers_all_its_tensors() -> None:
    """Equal fields, another kind: a signature under one is none under the other."""
    train = _task()
    values: dict[str, Any] = {f.name: getattr(train, f.name) for f in fields(EvaluateTask)}
    given = EvaluateTask(**values)
    assert given.digest() != train.digest()
    changes: list[dict[str, Any]] = [
        {"run": "other"},
        {"round": 99},
        {"site": "other"},
        {"recipe": "seed: 99"},
        {"protocol_version": 99},
        {"student": {"trunk.w": torch.full((2,), 9.0)}},
        {"teacher": {"trunk.w": torch.full((2,), 9.0)}},
    ]
    digests = {replace(given, **change).digest() for change in changes} | {given.digest()}
    assert len(digests) == len(changes) + 1
    assert {f.name for f in fields(EvaluateTask)} - {name for change in changes for name in change} == {
        "signature",
        "parcels",
    }
    assert given.signed("ab").digest() == given.digest()


def test_a_report_needs_its_metrics_whole() -> None:
    report = SiteReport(
        run="r",
        round=1,
        site="s",
        task_digest="",
        num_subjects=1,
        organ_subjects={},
        metrics=EvaluationMetrics(
            loss=1.0,
            loss_patch=1.0,
            loss_organ=None,
            collapse_loss=1.0,
            share={},
            lift={},
            share_entropy=None,
            probes={},
            seconds=1.0,
        ),
    )
    header = json.loads(to_envelope(report).header)
    broken: list[Any] = [None, {}, header["metrics"] | {"loss": "low"}, header["metrics"] | {"scan": 1.0}, [1]]
    for wrong in broken:
        with pytest.raises(ProtocolError, match="malformed site_report"):
            from_envelope(Envelope(kind="site_report", header=json.dumps(header | {"metrics": wrong})))
