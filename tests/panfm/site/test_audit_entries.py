"""What the audit log says of a task and its answer: who, what, how much; and nothing of a patient."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.protocol import (
    PROTOCOL_VERSION,
    AnswerParcel,
    JoinAnswer,
    ParcelRequest,
    Refusal,
    TaskParcel,
    TrainTask,
    to_envelope,
)
from panfm.signing import fingerprint, public_hex, sign
from panfm.site.audit_chain import EMPTY, make_line
from panfm.site.audit_entries import about_answer, about_parcel, about_task
from panfm.site.egress import Released
from panfm.site.policy_template import closed_policy
from tests.client.small_study import packed, quick_update

KEYS = [Ed25519PrivateKey.generate() for _ in range(3)]
POLICY = closed_policy("north", tuple(public_hex(key) for key in KEYS[:2]), ("brain",))
TENSORS = {"trunk.norm.weight": torch.arange(6.0), "organs.brain.token": torch.ones(2, 3)}
HEAD = f"{'ab' * 32}:1"
TASK = TrainTask(run="study-1", round=3, site="north", recipe="rounds: 5", student=TENSORS, teacher=TENSORS)


@pytest.mark.parametrize("place", [0, 1])
def test_task_is_told_by_who_signed_it(place: int) -> None:
    about = about_task(TASK.signed(sign(KEYS[place], TASK.digest())), POLICY, "cd" * 32)
    assert about == {
        "task": "train",
        "coordinator": fingerprint(public_hex(KEYS[place])),
        "run": "study-1",
        "round": 3,
        "task_digest": TASK.digest(),
        "policy_sha256": "cd" * 32,
        "recipe_sha256": hashlib.sha256(b"rounds: 5").hexdigest(),
    }


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, sign(KEYS[2], TASK.digest())])
def test_task_of_a_stranger_is_told_as_such(signature: str) -> None:
    assert about_task(TASK.signed(signature), POLICY, "")["coordinator"] == "unknown"


def test_update_is_told_by_digest_and_size() -> None:
    answer, parcels = packed(quick_update(TASK))
    event, about = about_answer(Released(answer=answer, parcel=parcels[0]), TASK)
    assert event == "answer_sent"
    assert (about["run"], about["round"], about["kind"]) == ("study-1", 3, "site_update")
    assert (about["parcels"], about["parcel_bytes"]) == (1, len(parcels[0].body))
    assert about["parcels_sha256"] == hashlib.sha256(parcels[0].sha256.encode()).hexdigest()
    header = to_envelope(answer).header.encode()
    assert (about["header_bytes"], about["header_sha256"]) == (len(header), hashlib.sha256(header).hexdigest())
    make_line(KEYS[0], EMPTY, "", event, about)


@pytest.mark.parametrize(("kind", "event"), [(TaskParcel, "parcel_received"), (ParcelRequest, "parcel_asked")])
def test_parcel_is_told_by_its_digest_and_who_signed_for_it(
    kind: type[TaskParcel] | type[ParcelRequest], event: str
) -> None:
    asked = kind(run="study-1", round=3, site="north", sha256="cd" * 32)
    signed = asked.signed(sign(KEYS[1], asked.digest()))
    about = {"coordinator": fingerprint(public_hex(KEYS[1])), "run": "study-1", "round": 3, "parcel_sha256": "cd" * 32}
    assert about_parcel(signed, POLICY) == (event, about)
    assert about_parcel(asked, POLICY) == (event, about | {"coordinator": "unknown"})


def test_handed_out_parcel_is_told() -> None:
    _, (parcel,) = packed(quick_update(TASK))
    asked = ParcelRequest(run="study-1", round=3, site="north", sha256=parcel.sha256)
    answer = AnswerParcel(run="study-1", round=3, site="north", sha256=parcel.sha256)
    event, about = about_answer(Released(answer=answer, parcel=parcel), asked)
    assert (event, about["kind"], about["parcel_bytes"]) == ("answer_sent", "answer_parcel", len(parcel.body))
    make_line(KEYS[0], EMPTY, "", event, about)


def test_refusal_and_joining_are_told() -> None:
    refusal = Refusal(run="study-1", round=3, site="north", code="hours", reason="not now")
    event, about = about_answer(Released(answer=refusal), TASK)
    assert (event, about["code"], about["run"], about["parcel_bytes"]) == ("task_refused", "hours", "study-1", 0)
    joined = JoinAnswer(site="north", organs=("brain",), protocol_version=PROTOCOL_VERSION, panfm_version="0")
    event, about = about_answer(Released(answer=joined), None)
    assert (event, about["kind"], "run" in about) == ("answer_sent", "join_answer", False)


def test_only_an_update_takes_the_head_along() -> None:
    released = Released(answer=quick_update(TASK)).witnessed(HEAD)
    assert getattr(released.answer, "audit_head", None) == HEAD
    refusal = Released(answer=Refusal(run="", round=0, site="", code="hours", reason=""))
    assert refusal.witnessed(HEAD) == refusal
