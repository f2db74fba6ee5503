"""Tasks in parcels and answers through the spool, with sites that are honest, slow, dying or lying."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import Encoding, FederationConfig, WireConfig
from panfm.groups import keep_groups
from panfm.protocol import (
    Answer,
    AnswerParcel,
    Envelope,
    EvaluateTask,
    EvaluationMetrics,
    ParcelKept,
    ParcelRequest,
    Refusal,
    SiteReport,
    SiteUpdate,
    Task,
    TaskParcel,
    TrainTask,
    from_envelope,
    to_envelope,
)
from panfm.signing import is_signed_by, public_hex, sign
from panfm.update import digest
from panfm.wire.encoding import as_received, encode
from panfm.wire.parcels import Parcel, pack, parcel_of, unpack_tensors
from server import exchange as exchange_file
from server.exchange import Exchanged, Fate, Post, exchange
from server.messages import parcel_body
from server.spool import Spool
from tests.client.small_study import ScriptedGrid, metrics, same_bits

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SITES = {11: ("east", ("brain",)), 12: ("north", ("brain", "liver")), 13: ("south", ("liver",))}
"""Node -> site and its organs."""
SMALL_MB = 0.01
"""A parcel's limit at which a task of these tests takes several."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    monkeypatch.setattr("server.replies.POLL_S", 0.001)
    monkeypatch.setattr(exchange_file, "UNREACHABLE_PAUSE_S", 0.01)


class Clock:
    """Time that passes only in the exchange's pauses, ten seconds each: no test depends on how fast the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.sleep", self._sleep)

    def _sleep(self, _seconds: float) -> None:
        self.now += 10.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def _model() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"trunk.w": (80, 50), "trunk.b": (50,), "heads.w": (50, 9)}
    shapes |= {f"organs.{organ}.w": (60, 50) for organ in ("brain", "liver")}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


MODEL = _model()


def _federation(encoding: str = "fp32", parcel_mb: float = 64.0, retries: int = 2) -> FederationConfig:
    wire = WireConfig(down=Encoding(encoding), up=Encoding(encoding), parcel_mb=parcel_mb)
    return FederationConfig(wire=wire, retries=retries)


def _tasks(federation: FederationConfig, round_number: int = 1, kind: type[Task] = TrainTask) -> dict[int, Task]:
    received = as_received(MODEL, federation.wire.down)
    tasks: dict[int, Task] = {}
    for node, (site, organs) in SITES.items():
        own = keep_groups(received, ("trunk", "heads", *organs))
        task = kind(run="r", round=round_number, site=site, recipe="x", student=own, teacher=own)
        tasks[node] = task.signed(sign(KEY, task.digest()))
    return tasks


@dataclass
class Site:
    """A peer written for these tests: it keeps parcels, checks all that it is told, and answers as the protocol says."""

    federation: FederationConfig
    deltas: Callable[[TrainTask], dict[str, Tensor]] = lambda task: {
        name: torch.full_like(tensor, 0.01) for name, tensor in task.student.items()
    }
    kept: dict[str, Parcel] = field(default_factory=dict)
    answers: dict[str, tuple[SiteUpdate, list[Parcel]]] = field(default_factory=dict)
    trained: int = 0
    heard: list[str] = field(default_factory=list)
    """Kinds of what came."""

    def answer(self, message: Message) -> Message:
        """An honest reply."""
        envelope = message.content.config_records["envelope"]
        asked = from_envelope(Envelope(kind=str(envelope["kind"]), header=str(envelope["header"])))
        self.heard.append(str(envelope["kind"]))
        assert isinstance(asked, TrainTask | EvaluateTask | TaskParcel | ParcelRequest)
        body = parcel_body(message)
        came = None if body is None else parcel_of(body)
        if isinstance(asked, TaskParcel):
            assert came is not None
            return _reply(message, *self.keep(asked, came))
        if isinstance(asked, ParcelRequest):
            return _reply(message, *self.hand_out(asked))
        assert came is not None
        return _reply(message, *self.take_part(asked, came))

    def keep(self, ahead: TaskParcel, came: Parcel) -> tuple[Answer, Parcel | None]:
        assert is_signed_by(public_hex(KEY), ahead.digest(), ahead.signature)
        assert came.sha256 == ahead.sha256
        self.kept[came.sha256] = came
        return ParcelKept(run=ahead.run, round=ahead.round, site=ahead.site, sha256=ahead.sha256), None

    def take_part(self, header: Task, last: Parcel) -> tuple[Answer, Parcel | None]:
        *ahead, label = header.parcels
        assert label == last.label
        if any(parcel.sha256 not in self.kept for parcel in ahead):
            return _refusal(header, "parcels_missing"), None
        came = unpack_tensors([*(self.kept[parcel.sha256] for parcel in ahead), last])
        student, teacher = (
            {name[8:]: tensor for name, tensor in came.items() if name.startswith(part)}
            for part in ("student", "teacher")
        )
        task = replace(header, student=student, teacher=teacher)
        assert is_signed_by(public_hex(KEY), task.digest(), task.signature), "as received, to the bit"
        if isinstance(task, EvaluateTask):
            return _report(task), None
        if task.digest() not in self.answers:
            self.trained += 1
            wire = self.federation.wire
            parcels = list(pack(encode(self.deltas(task), wire.up), wire.zstd_level, wire.parcel_bytes))
            self.answers[task.digest()] = _update(task, parcels), parcels
        update, parcels = self.answers[task.digest()]
        return update, parcels[0]

    def hand_out(self, request: ParcelRequest) -> tuple[Answer, Parcel | None]:
        assert is_signed_by(public_hex(KEY), request.digest(), request.signature)
        parcels = [parcel for _, all_of_it in self.answers.values() for parcel in all_of_it]
        parcel = next(parcel for parcel in parcels if parcel.sha256 == request.sha256)
        return AnswerParcel(run=request.run, round=request.round, site=request.site, sha256=parcel.sha256), parcel


def _refusal(task: Task, code: str) -> Refusal:
    return Refusal(run=task.run, round=task.round, site=task.site, code=code, reason="words")


def _report(task: EvaluateTask) -> SiteReport:
    told = EvaluationMetrics(
        loss=0.5,
        loss_patch=0.5,
        loss_organ=None,
        collapse_loss=0.6,
        share={},
        lift={},
        share_entropy=None,
        probes={},
        seconds=0.1,
    )
    return SiteReport(
        run=task.run,
        round=task.round,
        site=task.site,
        task_digest=task.digest(),
        num_subjects=2,
        organ_subjects={"brain": 2},
        metrics=told,
    )


def _update(task: TrainTask, parcels: list[Parcel], **changes: Any) -> SiteUpdate:
    update = SiteUpdate(
        run=task.run,
        round=task.round,
        site=task.site,
        task_digest=task.digest(),
        deltas={},
        num_subjects=2,
        organ_subjects={"brain": 2},
        num_steps=1,
        metrics=metrics(),
        parcels=tuple(parcel.label for parcel in parcels),
    )
    return replace(update, **changes)


def _reply(message: Message, answer: Answer | Task, parcel: Parcel | None) -> Message:
    envelope = to_envelope(answer)
    content = RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    if parcel is not None:
        content["parcel"] = ArrayRecord({"body": Array(np.frombuffer(parcel.body, np.uint8))})
    return Message(content, reply_to=message)


def _died(message: Message, code: int = 8) -> Message:
    return Message(Error(code=code, reason="/srv/hospital/sub-31415"), reply_to=message)


Handler = Callable[[Message], Message | None]
"""A node: its reply to a message, or None while it has none."""


class NodeGrid(ScriptedGrid):
    """Nodes that are functions; each look is for one message, as the exchange promises."""

    def __init__(self, nodes: Mapping[int, Handler]) -> None:
        super().__init__([])
        self.nodes = dict(nodes)
        self.pending: dict[str, Message] = {}
        self.most_pending: dict[int, int] = {}
        self._numbers = itertools.count()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        (message,) = messages
        message_id = message.metadata.__dict__["_message_id"] = f"m{next(self._numbers)}"
        self.pending[message_id] = message
        node = message.metadata.dst_node_id
        before = sum(other.metadata.dst_node_id == node for other in self.pending.values())
        self.most_pending[node] = max(before, self.most_pending.get(node, 0))
        return [message_id]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        message = self.pending[message_id]
        reply = self.nodes[message.metadata.dst_node_id](message)
        if reply is None:
            return []
        del self.pending[message_id]
        return [reply]


def _nodes(federation: FederationConfig, **others: Handler) -> tuple[dict[int, Handler], dict[str, Site]]:
    """Honest sites, but for those named."""
    sites = {site: Site(federation) for site, _ in SITES.values()}
    return {node: others.get(site, sites[site].answer) for node, (site, _) in SITES.items()}, sites


def _run(
    grid: NodeGrid,
    folder: Path,
    federation: FederationConfig,
    tasks: Mapping[int, Task] | None = None,
    deadline_s: float = 60.0,
    post: Post | None = None,
) -> dict[str, Exchanged]:
    came = list(
        exchange(
            post or Post(grid),
            dict(_tasks(federation) if tasks is None else tasks),
            Spool(folder),
            key=KEY,
            federation=federation,
            deadline_s=deadline_s,
        )
    )
    mine = [one for one in came if one.fate is not Fate.overdue]
    assert sorted(one.site for one in mine) == sorted(site for site, _ in SITES.values()), "once a node"
    return {one.site: one for one in mine}


def test_tasks_and_their_tensors_are_let_go_once_they_are_packed(tmp_path: Path) -> None:
    """Rounded tensors are a model of their own, which must not lie in memory until the last site has answered."""
    federation = FederationConfig(wire=WireConfig(down=Encoding.bf16))
    nodes, _ = _nodes(federation)
    tasks = dict(_tasks(federation))
    held = [
        weakref.ref(tensor) for task in tasks.values() for tensor in (*task.student.values(), *task.teacher.values())
    ]
    came = exchange(Post(NodeGrid(nodes)), tasks, Spool(tmp_path), key=KEY, federation=federation, deadline_s=60.0)
    next(came)
    gc.collect()
    assert held
    assert not any(tensor() is not None for tensor in held)
    assert tasks == {}


def _whole(came: Exchanged) -> dict[str, Tensor]:
    assert came.spooled is not None
    deltas = came.spooled.deltas
    shapes = {name: deltas.shape(name) for name in deltas.names()}
    return {name: deltas.block(name, 0, shape.numel()).reshape(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("encoding", ["fp32", "bf16"])
@pytest.mark.parametrize(("parcel_mb", "one_message"), [(64.0, True), (SMALL_MB, False)])
def test_each_site_gets_its_task_and_its_update_comes_back(
    tmp_path: Path, encoding: str, parcel_mb: float, one_message: bool
) -> None:
    federation = _federation(encoding, parcel_mb)
    nodes, sites = _nodes(federation)
    grid = NodeGrid(nodes)
    tasks = _tasks(federation)
    came = _run(grid, tmp_path, federation, tasks)

    for node, (site, _) in SITES.items():
        task, one = tasks[node], came[site]
        assert isinstance(task, TrainTask)
        assert (one.fate, one.attempts, one.node, one.round, one.reason) == (Fate.answered, 1, node, 1, "")
        assert isinstance(one.answer, SiteUpdate)
        assert one.answer.task_digest == task.digest()
        expected = as_received(sites[site].deltas(task), federation.wire.up)
        assert same_bits(_whole(one), expected)
        assert (sites[site].heard == ["train_task"]) is one_message
        assert sites[site].trained == 1
        assert one.bytes_down > 0 < one.bytes_up
    assert set(grid.most_pending.values()) == {1}, "one message a node at a time"
    if not one_message:
        assert sites["north"].heard.count("task_parcel") >= 2
        assert sites["north"].heard.count("parcel_request") >= 2


def test_shared_groups_are_packed_once_for_all_sites(tmp_path: Path) -> None:
    federation = _federation("fp32", SMALL_MB)
    nodes, sites = _nodes(federation)
    _run(NodeGrid(nodes), tmp_path, federation)
    on_disk = {path.name: path.stat().st_size for path in (tmp_path / "round-0001" / ".parcels").iterdir()}
    three = [set(site.kept) for site in sites.values()]
    shared = set.intersection(*three)
    assert sum(on_disk[sha] for sha in shared) > 0.9 * 2 * 4 * (80 * 50 + 50 + 50 * 9) * 0.8
    assert len(on_disk) < sum(len(kept) + 1 for kept in three)


def test_evaluation_comes_back_as_a_report(tmp_path: Path) -> None:
    federation = _federation("bf16", SMALL_MB)
    nodes, _ = _nodes(federation)
    came = _run(NodeGrid(nodes), tmp_path, federation, _tasks(federation, kind=EvaluateTask))
    assert all(isinstance(one.answer, SiteReport) and one.spooled is None for one in came.values())


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(deaths=st.lists(st.booleans(), max_size=60), retries=st.integers(0, 3))
def test_program_that_dies_at_any_step_is_asked_again_and_trains_once(
    tmp_path_factory: pytest.TempPathFactory, deaths: list[bool], retries: int
) -> None:
    """It may die before or after it did what it was asked for; the deltas are those of an undisturbed round."""
    federation = _federation("bf16", SMALL_MB, retries)
    honest = Site(federation)
    fate = iter(deaths)
    died = 0

    def node(message: Message) -> Message:
        nonlocal died
        reply = honest.answer(message)
        if next(fate, False) and died <= retries:
            died += 1
            return _died(message)
        return reply

    nodes, _ = _nodes(federation, north=node)
    came = _run(NodeGrid(nodes), tmp_path_factory.mktemp("deaths"), federation)["north"]
    assert came.attempts == 1 + min(died, retries)
    if died > retries:
        assert (came.fate, came.answer) == (Fate.failed, None)
        assert "ended without an answer" in came.reason
        assert "31415" not in came.reason
    else:
        assert came.fate is Fate.answered
        assert honest.trained == 1
        task = _tasks(federation)[12]
        assert isinstance(task, TrainTask)
        assert same_bits(_whole(came), as_received(honest.deltas(task), Encoding.bf16))


@pytest.mark.usefixtures("clock")
def test_others_are_not_held_up_by_one_that_waits_for_its_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_file, "UNREACHABLE_PAUSE_S", 3600.0)
    federation = _federation()
    nodes, _ = _nodes(federation, north=lambda message: _died(message, 5))
    came = _run(NodeGrid(nodes), tmp_path, federation, deadline_s=60.0)
    assert (came["north"].fate, came["north"].attempts) == (Fate.failed, 2)
    assert came["north"].reason.endswith("no time left to ask again")
    assert came["east"].fate is came["south"].fate is Fate.answered


def test_site_that_lost_its_parcels_gets_them_again(tmp_path: Path) -> None:
    federation = _federation("fp32", SMALL_MB)
    honest = Site(federation)
    lost = 0

    def node(message: Message) -> Message:
        nonlocal lost
        if message.metadata.message_type == "train" and not lost:
            lost += 1
            honest.kept.clear()
        return honest.answer(message)

    nodes, _ = _nodes(federation, north=node)
    came = _run(NodeGrid(nodes), tmp_path, federation)["north"]
    assert (came.fate, came.attempts) == (Fate.answered, 2)

    def forgetful(message: Message) -> Message:
        honest.kept.clear()
        return honest.answer(message)

    nodes, _ = _nodes(federation, north=forgetful)
    came = _run(NodeGrid(nodes), tmp_path, federation)["north"]
    assert (came.fate, came.attempts) == (Fate.failed, 3)
    assert "has lost the parcels" in came.reason


def test_message_that_cannot_be_sent_is_tried_again(tmp_path: Path) -> None:
    class Refusing(NodeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            (message,) = messages
            return [] if message.metadata.dst_node_id == 12 else super().push_messages([message])

    federation = _federation()
    came = _run(Refusing(_nodes(federation)[0]), tmp_path, federation)
    assert (came["north"].fate, came["north"].attempts, came["north"].bytes_down) == (Fate.failed, 3, 0)
    assert "could not be sent" in came["north"].reason


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("silent_from", ["the task", "a parcel ahead", "a parcel of the answer"])
def test_who_is_late_is_named_and_its_reply_kept_out_when_it_comes(tmp_path: Path, silent_from: str) -> None:
    federation = _federation("fp32", SMALL_MB)
    kind = {"the task": "train_task", "a parcel ahead": "task_parcel", "a parcel of the answer": "parcel_request"}[
        silent_from
    ]
    honest = Site(federation)
    sleeping = True

    def node(message: Message) -> Message | None:
        asleep = sleeping and str(message.content.config_records["envelope"]["kind"]) == kind
        return None if asleep else honest.answer(message)

    nodes, _ = _nodes(federation, north=node)
    grid = NodeGrid(nodes)
    post = Post(grid)
    late = _run(grid, tmp_path, federation, deadline_s=60.0, post=post)["north"]
    assert (late.fate, late.reason, late.answer, late.spooled) == (Fate.late, "no answer within 60 s", None, None)
    assert not (tmp_path / "round-0001" / "north").exists()

    sleeping = False
    second = list(
        exchange(post, _tasks(federation, 2), Spool(tmp_path), key=KEY, federation=federation, deadline_s=60.0)
    )
    (overdue,) = (one for one in second if one.fate is Fate.overdue)
    assert (overdue.site, overdue.round, overdue.answer) == ("north", 1, None)
    assert overdue.seconds >= 60.0
    assert "came after" in overdue.reason
    assert sorted(one.site for one in second if one.fate is Fate.answered) == ["east", "north", "south"]
    assert all(one.round == 2 for one in second if one.fate is Fate.answered)
    assert not post.waiting()


@pytest.mark.usefixtures("clock")
def test_no_reply_of_an_evaluation_passes_for_one_of_the_round(tmp_path: Path) -> None:
    """Both have the same round number."""
    federation = _federation()
    honest = Site(federation)
    held: list[Message] = []

    def node(message: Message) -> Message | None:
        if message.metadata.message_type == "evaluate" and not held:
            held.append(message)
        if held and message is held[0] and len(honest.heard) == 0:
            return None
        return honest.answer(message)

    grid = NodeGrid(_nodes(federation, north=node)[0])
    post = Post(grid)
    first = _run(grid, tmp_path, federation, _tasks(federation, kind=EvaluateTask), 60.0, post)
    assert first["north"].fate is Fate.late
    second = _run(grid, tmp_path, federation, post=post)
    assert isinstance(second["north"].answer, SiteUpdate)


def test_refusal_is_an_answer_at_any_step(tmp_path: Path) -> None:
    federation = _federation("fp32", SMALL_MB)
    for kind in ("task_parcel", "train_task", "parcel_request"):
        honest = Site(federation)

        def node(message: Message, honest: Site = honest, kind: str = kind) -> Message:
            if str(message.content.config_records["envelope"]["kind"]) == kind:
                return _reply(message, _refusal(_tasks(federation)[12], "signature"), None)
            return honest.answer(message)

        came = _run(NodeGrid(_nodes(federation, north=node)[0]), tmp_path, federation)["north"]
        assert came.fate is Fate.answered
        assert came.spooled is None
        assert isinstance(came.answer, Refusal)
        assert came.answer.code == "signature"


def _says(answer: Callable[[TrainTask], tuple[Answer | Task, Parcel | None]]) -> Handler:
    def node(message: Message) -> Message:
        task = _tasks(_federation())[12]
        assert isinstance(task, TrainTask)
        return _reply(message, *answer(task))

    return node


def _two(task: TrainTask) -> list[Parcel]:
    return [parcel for name in ("a", "b") for parcel in pack({f"trunk.{name}": torch.ones(9)})]


def _content(message: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=message)


def _named(message: Message, name: str, key: str) -> Message:
    content = _reply(message, _refusal(TASK, "budget"), None).content
    content[name] = ArrayRecord({key: Array(np.zeros(4, np.uint8))})
    return _content(message, content)


TASK, EVALUATE = _tasks(_federation())[12], _tasks(_federation(), kind=EvaluateTask)[12]
assert isinstance(TASK, TrainTask)
assert isinstance(EVALUATE, EvaluateTask)
REPORT = _report(EVALUATE)

LIES: dict[str, tuple[Handler, str]] = {
    "other code": (lambda m: _content(m, RecordDict({"words": ConfigRecord({"of": "another"})})), "lacks the record"),
    "half an envelope": (
        lambda m: _content(m, RecordDict({"envelope": ConfigRecord({"kind": "x"})})),
        "lacks 'header'",
    ),
    "an unknown kind": (
        lambda m: _content(m, RecordDict({"envelope": ConfigRecord({"kind": "x", "header": "{}"})})),
        "unknown kind",
    ),
    "tensors outside a parcel": (lambda m: _named(m, "tensors", "body"), "not in a parcel"),
    "a parcel of another name": (lambda m: _named(m, "parcel", "words"), "not in a parcel"),
    "the task itself": (_says(lambda task: (replace(task, student={}, teacher={}), None)), "a task or a question"),
    "a word that it keeps a parcel": (
        _says(lambda task: (ParcelKept(run="r", round=1, site="north", sha256="0" * 64), None)),
        "sent ParcelKept",
    ),
    "a report": (_says(lambda _task: (REPORT, None)), "sent SiteReport"),
    "a wrong digest": (
        _says(lambda task: (_update(task, _two(task)[:1]), Parcel(_two(task)[0].body[:-1] + b"\x01", ""))),
        "not those of its SHA-256",
    ),
    "another size": (_says(lambda task: (_update(task, _two(task)[:1]), Parcel(b"x", ""))), "size that its answer"),
    "no parcel where one is announced": (_says(lambda task: (_update(task, _two(task)), None)), "do not fit together"),
    "a parcel where none is announced": (_says(lambda task: (_update(task, []), _two(task)[0])), "do not fit together"),
    "the same answer instead of a parcel": (
        _says(lambda task: (_update(task, _two(task)), _two(task)[0])),
        "parcel that was asked",
    ),
    "endless parcels": (_says(lambda task: (_update(task, _two(task) * 500), _two(task)[0])), "announces 1000 parcels"),
    "too much": (
        _says(lambda task: (_update(task, [parcel := next(pack({"trunk.w": torch.ones(10**6)}))]), parcel)),
        "holds more than its task",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lie_costs_its_own_update_only(tmp_path: Path, lie: str) -> None:
    handler, reason = LIES[lie]
    federation = _federation()
    came = _run(NodeGrid(_nodes(federation, north=handler)[0]), tmp_path, federation)
    assert (came["north"].fate, came["north"].attempts, came["north"].spooled) == (Fate.left_out, 1, None)
    assert reason in came["north"].reason
    assert came["north"].reason.isprintable()
    assert len(came["north"].reason) <= 200
    assert came["east"].fate is came["south"].fate is Fate.answered
    assert not (tmp_path / "round-0001" / "north").exists()


def test_update_to_an_evaluation_is_a_lie(tmp_path: Path) -> None:
    federation = _federation()
    node = _says(lambda task: (_update(task, []), None))
    came = _run(
        NodeGrid(_nodes(federation, north=node)[0]), tmp_path, federation, _tasks(federation, kind=EvaluateTask)
    )
    assert came["north"].fate is Fate.left_out


def test_nobody_to_ask(tmp_path: Path) -> None:
    federation = _federation()
    assert list(exchange(Post(NodeGrid({})), {}, Spool(tmp_path), key=KEY, federation=federation, deadline_s=1.0)) == []


def test_task_digest_is_of_the_tensors_as_received() -> None:
    """What these tests lean on: transport changes nothing that is signed."""
    federation = _federation("bf16")
    task = _tasks(federation)[12]
    assert digest(task.student) == digest(
        keep_groups(as_received(MODEL, Encoding.bf16), ("trunk", "heads", "brain", "liver"))
    )
