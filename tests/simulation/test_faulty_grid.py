"""A grid on which things go wrong as planned: what arrives, when, and what is never touched."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from panfm.config import Encoding, FaultConfig, FaultKind
from panfm.wire.parcels import pack_tensors, parcel_of, unpack_tensors
from simulation import faulty_grid
from simulation.faulty_grid import FaultyGrid
from simulation.local_grid import LocalGrid
from simulation.tampering import SPOILT

NODES = {1000: "a", 1001: "b"}


class Clock:
    """Time that passes when it is told to."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(faulty_grid, "time", made)
    return made


def _answer(message: Message, context: Context) -> Message:
    """An update whose one number is the round, or to any other question a refusal."""
    envelope = message.content.config_records["envelope"]
    number = json.loads(str(envelope["header"]))["round"]
    if envelope["kind"] != "train_task":
        refusal = ConfigRecord({"kind": "refusal", "header": envelope["header"]})
        return Message(RecordDict({"envelope": refusal}), reply_to=message)
    (parcel,) = pack_tensors({"trunk.w": torch.full((3,), float(number))}, Encoding.fp32)
    label = {"sha256": parcel.sha256, "size_bytes": len(parcel.body)}
    header = json.dumps({"round": number, "parcels": [label]})
    body = ArrayRecord({"body": Array(np.frombuffer(parcel.body, dtype=np.uint8))})
    content = RecordDict({"envelope": ConfigRecord({"kind": "site_update", "header": header}), "parcel": body})
    return Message(content, reply_to=message)


def _grid(config: FaultConfig) -> FaultyGrid:
    app = ClientApp()
    app.train()(_answer)
    return FaultyGrid(LocalGrid(app, [{}] * len(NODES), {}, {}), config, NODES)


def _faults(*kinds: FaultKind, **settings: bool | float) -> FaultConfig:
    """A plan in which everything goes wrong at site a."""
    return FaultConfig(rate=1.0, kinds=list(kinds), sites=["a"], **settings)  # type: ignore[arg-type]


def _send(grid: Grid, number: int, node: int = 1000, kind: str = "train_task") -> str:
    header = ConfigRecord({"kind": kind, "header": json.dumps({"round": number})})
    message = Message(RecordDict({"envelope": header}), dst_node_id=node, message_type=MessageType.TRAIN)
    (message_id,) = grid.push_messages([message])
    return message_id


def _pull(grid: Grid, message_id: str) -> Message | None:
    replies = list(grid.pull_messages([message_id]))
    assert all(reply.metadata.reply_to_message_id == message_id for reply in replies)
    return replies[0] if replies else None


def _asked(grid: Grid, number: int, node: int = 1000) -> Message | None:
    return _pull(grid, _send(grid, number, node))


def _header(reply: Message | None) -> Mapping[str, int]:
    assert reply is not None
    header: Mapping[str, int] = json.loads(str(reply.content.config_records["envelope"]["header"]))
    return header


def _values(reply: Message | None) -> list[float]:
    assert reply is not None
    body = reply.content.array_records["parcel"]["body"].numpy().tobytes()
    (tensor,) = unpack_tensors([parcel_of(body)]).values()
    return [float(value) for value in tensor]


def test_a_lost_answer_never_comes_and_the_other_site_is_untouched() -> None:
    grid = _grid(_faults(FaultKind.drop))
    lost = _send(grid, 1)
    assert [_pull(grid, lost) for _ in range(3)] == [None] * 3
    assert _values(_asked(grid, 1, node=1001)) == [1.0] * 3


def test_a_slow_answer_comes_when_its_time_has_come(clock: Clock) -> None:
    grid = _grid(_faults(FaultKind.slow, slow_s=9.0))
    message_id = _send(grid, 1)
    assert _pull(grid, message_id) is None
    clock.now_s = 8.9
    assert _pull(grid, message_id) is None
    clock.now_s = 9.0
    assert _values(_pull(grid, message_id)) == [1.0] * 3
    assert _pull(grid, message_id) is None


def test_the_round_before_comes_again_and_then_the_honest_one_is_kept() -> None:
    grid = _grid(_faults(FaultKind.replay))
    assert _header(_asked(grid, 1))["round"] == 0, "nothing to repeat yet"
    assert (_header(came := _asked(grid, 2))["round"], _values(came)) == (1, [1.0] * 3)
    assert (_header(came := _asked(grid, 3))["round"], _values(came)) == (2, [2.0] * 3)
    assert _header(_asked(grid, 5))["round"] in (3, 4), "a site that was not asked has no newer one"


def test_a_stale_answer_says_the_round_before() -> None:
    reply = _asked(_grid(_faults(FaultKind.stale_round)), 4)
    assert (_header(reply)["round"], _values(reply)) == (3, [4.0] * 3)


@pytest.mark.parametrize("kind", list(SPOILT))
def test_a_spoilt_answer_answers_the_same_message(kind: FaultKind) -> None:
    reply = _asked(_grid(_faults(kind)), 4)
    assert _header(reply)["round"] == 4
    assert reply is not None
    assert reply.content.array_records["parcel"]["body"].numpy().tobytes() != b""


@pytest.mark.parametrize(("lasting", "works"), [(True, [False, False]), (False, [False, True])])
def test_a_program_fails_at_every_attempt_or_at_the_first(lasting: bool, works: list[bool]) -> None:
    grid = _grid(_faults(FaultKind.exception, lasting=lasting))
    replies = [_asked(grid, 1) for _ in range(2)]
    assert [reply is not None and not reply.has_error() for reply in replies] == works
    again = _asked(grid, 2)
    assert again is not None
    assert again.has_error(), "another round is another fault"


@pytest.mark.parametrize("kind", [FaultKind.drop, FaultKind.exception, FaultKind.huge_norm, FaultKind.stale_round])
def test_only_answers_of_training_go_wrong(kind: FaultKind) -> None:
    grid = _grid(_faults(kind))
    reply = _pull(grid, _send(grid, 1, kind="evaluate_task"))
    assert reply is not None
    assert reply.content.config_records["envelope"]["kind"] == "refusal"


def test_it_is_the_grid_behind_it_in_all_else() -> None:
    behind = LocalGrid(ClientApp(), [{}, {}], {}, {})
    grid = FaultyGrid(behind, FaultConfig(), NODES)
    assert list(grid.get_node_ids()) == list(NODES)
    grid.set_run(behind.run)
    assert grid.run is behind.run
    message = grid.create_message(RecordDict(), MessageType.QUERY, 1000, "1")
    (reply,) = grid.send_and_receive([message])
    assert reply.has_error(), "it has no handler"
