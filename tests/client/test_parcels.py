"""Parcels at the hospital's door: kept for a coordinator of its policy and for nobody else, handed out as they were stored."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message

from client.app import app
from panfm.config import Encoding
from panfm.export.model_folder import read_model
from panfm.protocol import (
    Answer,
    AnswerParcel,
    ParcelKept,
    ParcelRequest,
    Refusal,
    SiteUpdate,
    TaskParcel,
    TrainTask,
)
from panfm.signing import sign
from panfm.site.audit_log import inspect_folder
from panfm.site.identity import read_public_key
from panfm.site.policy import Public
from panfm.site.policy_file import read_policy, write_policy
from panfm.wire.parcels import Parcel, pack_tensors, parcel_of, unpack_tensors
from server.messages import decode_reply, encode_parcel, encode_request, encode_task, parcel_body
from server.run_folder import coordinator_key
from tests.client.small_study import SmallStudy, same_bits, signed_task

NODE = 1002


@pytest.fixture
def split(study: SmallStudy) -> SmallStudy:
    """A study whose tasks and answers travel in several parcels."""
    study.grid()
    return study.with_settings(
        "federation.wire.parcel_mb=0.05", "federation.wire.up=int8", "federation.wire.zstd_level=1"
    )


@pytest.fixture
def site(study: SmallStudy) -> Path:
    return study.hospitals["neuro"]


def _ask(study: SmallStudy, message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = "asked"
    return app(message, study.grid()._contexts[NODE])


def _parcels(task: TrainTask) -> list[Parcel]:
    tensors = {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(task, part).items()}
    parcels = list(pack_tensors(tensors, Encoding.fp32, 1, 50_000))
    assert len(parcels) > 3
    return parcels


def _ahead(study: SmallStudy, task: TrainTask, parcel: Parcel, key: Ed25519PrivateKey | None = None) -> Answer:
    asked = TaskParcel(run=task.run, round=task.round, site=task.site, sha256=parcel.sha256)
    signed = asked.signed(sign(key or coordinator_key(study.runs), asked.digest()))
    return decode_reply(_ask(study, encode_parcel(signed, parcel, NODE, 60.0)))


def _send(study: SmallStudy, task: TrainTask, parcels: list[Parcel]) -> Message:
    return _ask(study, encode_task(task, tuple(parcel.label for parcel in parcels), parcels[-1], NODE, 60.0))


def _request(study: SmallStudy, task: TrainTask, sha256: str) -> Message:
    asked = ParcelRequest(run=task.run, round=task.round, site=task.site, sha256=sha256)
    return _ask(study, encode_request(asked.signed(sign(coordinator_key(study.runs), asked.digest())), NODE, 60.0))


def _refused(reply: Message | Answer) -> str:
    answer = decode_reply(reply) if isinstance(reply, Message) else reply
    assert isinstance(answer, Refusal)
    return answer.code


def _update(reply: Message) -> SiteUpdate:
    answer = decode_reply(reply)
    assert isinstance(answer, SiteUpdate), answer
    return answer


def _shelf(site: Path) -> list[Path]:
    return [path for path in (site / "state" / "parcels").rglob("*") if path.is_file()]


def test_a_task_in_parcels_is_answered_in_parcels(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    parcels = _parcels(task)
    for parcel in parcels[:-1]:
        kept = ParcelKept(run=task.run, round=1, site="neuro", sha256=parcel.sha256)
        assert _ahead(split, task, parcel) == kept
    assert len(_shelf(site)) == len(parcels) - 1
    reply = _send(split, task, parcels)
    update = _update(reply)
    assert _shelf(site) == []
    assert len(update.parcels) > 1

    bodies = [parcel_body(reply)]
    for label in update.parcels[1:]:
        further = _request(split, task, label.sha256)
        assert decode_reply(further) == AnswerParcel(run=task.run, round=1, site="neuro", sha256=label.sha256)
        bodies.append(parcel_body(further))
    came = [parcel_of(body or b"") for body in bodies]
    assert tuple(parcel.label for parcel in came) == update.parcels
    assert set(unpack_tensors(came)) == set(task.student)

    found = inspect_folder(site, read_public_key(site))
    assert found.fault is None
    events = [entry.event for entry in found.entries][1:]
    ahead, further_on = len(parcels) - 1, len(update.parcels) - 1
    assert events == [
        *["parcel_received", "answer_sent"] * ahead,
        "task_received",
        "answer_sent",
        *["parcel_asked", "answer_sent"] * further_on,
    ]


def test_how_a_task_travelled_changes_no_bit_of_its_answer(split: SmallStudy, study: SmallStudy) -> None:
    """The same recipe, in one parcel and in many."""
    task = signed_task(split, "neuro")
    parcels = _parcels(task)
    for parcel in parcels[:-1]:
        _ahead(split, task, parcel)
    many = _update(_send(split, task, parcels))
    (whole,) = pack_tensors(
        {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(task, part).items()},
        Encoding.fp32,
    )
    again = _update(_send(split, task, [whole]))
    assert replace(many, audit_head="") == replace(again, audit_head=""), "and it is the stored answer"


def test_a_task_whose_parcels_are_not_there_asks_for_them(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    parcels = _parcels(task)
    assert _refused(_send(split, task, parcels)) == "parcels_missing"
    for parcel in parcels[:-2]:
        _ahead(split, task, parcel)
    assert _refused(_send(split, task, parcels)) == "parcels_missing"
    _ahead(split, task, parcels[-2])
    assert len(_shelf(site)) == len(parcels) - 1, "what had come before is still there"
    _update(_send(split, task, parcels))


def test_no_strangers_bytes_are_kept(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    parcel = _parcels(task)[0]
    assert _refused(_ahead(split, task, parcel, Ed25519PrivateKey.generate())) == "signature"
    assert _refused(_ahead(split, replace(task, site="cardiac"), parcel)) == "wrong_site"
    assert _refused(_ahead(split, task, Parcel(b"other bytes", parcel.sha256))) == "site_protocol"
    assert _shelf(site) == []


def test_a_strangers_task_takes_no_parcel_off_the_shelf(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    parcels = _parcels(task)
    for parcel in parcels[:-1]:
        _ahead(split, task, parcel)
    assert _refused(_send(split, task.signed("00" * 64), parcels)) == "signature"
    assert len(_shelf(site)) == len(parcels) - 1
    _update(_send(split, task, parcels))


def test_only_parcels_of_this_rounds_answer_are_handed_out(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    (whole,) = pack_tensors(
        {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(task, part).items()},
        Encoding.fp32,
    )
    update = _update(_send(split, task, [whole]))
    sha256 = update.parcels[1].sha256
    stranger = ParcelRequest(run=task.run, round=1, site="neuro", sha256=sha256)
    unsigned = _ask(split, encode_request(stranger.signed("00" * 64), NODE, 60.0))
    assert (_refused(unsigned), parcel_body(unsigned)) == ("signature", None)
    for asked, wanted in (
        (task, "ab" * 32),
        (task, "../answer.json"),
        (replace(task, round=2), sha256),
        (replace(task, run="x"), sha256),
    ):
        reply = _request(split, asked, wanted)
        assert (_refused(reply), parcel_body(reply)) == ("parcel_unknown", None)
    policy = read_policy(site)
    write_policy(site, replace(policy, public=(Public.counts, Public.metrics)))
    assert _refused(_request(split, task, sha256)) == "updates_not_public"
    write_policy(site, replace(policy, organs=("brain",)))
    codes = {_request_code(split, task, label.sha256) for label in update.parcels}
    assert "site_egress" in codes, "the heart is no longer offered, and its parcel stays"


def _request_code(study: SmallStudy, task: TrainTask, sha256: str) -> str:
    answer = decode_reply(_request(study, task, sha256))
    return answer.code if isinstance(answer, Refusal) else ""


def test_damaged_parcel_does_not_leave(split: SmallStudy, site: Path) -> None:
    task = signed_task(split, "neuro")
    (whole,) = pack_tensors(
        {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(task, part).items()},
        Encoding.fp32,
    )
    update = _update(_send(split, task, [whole]))
    (path,) = (site / "state" / "answers").rglob("parcel-001")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    reply = _request(split, task, update.parcels[1].sha256)
    assert (_refused(reply), parcel_body(reply)) == ("site_data", None)


@pytest.mark.parametrize(("down", "up"), [("bf16", "int8"), pytest.param("fp32", "fp32", marks=pytest.mark.slow)])
def test_whole_runs_end_alike_in_one_parcel_and_in_many(study: SmallStudy, down: str, up: str) -> None:
    """Packing changes nothing; what the model is, is decided by the encoding alone."""
    models, trained = [], []
    for parcel_mb in ("64", "0.1"):
        packing = f"federation.wire.parcel_mb={parcel_mb}"
        encoding = (f"federation.wire.down={down}", f"federation.wire.up={up}")
        run = study.with_settings("rounds=1", *encoding, packing, name=f"in-{parcel_mb}")
        grid = run.conduct()
        models.append(read_model(run.folder / "model"))
        trained.append(len(grid.sent))
    assert same_bits(models[0].student, models[1].student)
    assert same_bits(models[0].teacher, models[1].teacher)
    assert trained[0] == 3 + 3
    assert trained[1] >= trained[0] + 3, "each task in two parcels or more"
