"""What a site is asked and what leaves it stands in its audit log first; where it cannot stand there, nothing leaves."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message

import client.app
from client.app import app
from client.workspace import Workspace
from panfm.errors import AuditError, DataError
from panfm.protocol import Refusal, SiteUpdate, TrainTask
from panfm.signing import fingerprint, public_hex
from panfm.site.answers import AnswerStore
from panfm.site.audit_chain import Entry, JsonScalar, head_from
from panfm.site.audit_log import LOG, STATE, AuditLog, inspect_folder
from panfm.site.identity import read_public_key
from server.messages import decode_reply, encode_join_question
from server.run_folder import coordinator_key
from tests.client.small_study import (
    SmallStudy,
    all_bytes,
    packed,
    quick_update,
    signed_task,
    task_message,
    tensor_names,
)

NODE = 1002


@pytest.fixture
def site(study: SmallStudy) -> Path:
    return study.hospitals["neuro"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[TrainTask]:
    """Tasks that were taken up; they are answered at once."""
    taken: list[TrainTask] = []

    def answer(task: TrainTask, workspace: Workspace) -> SiteUpdate:
        taken.append(task)
        stored, parcels = packed(quick_update(task))
        workspace.answers.commit(stored, parcels)
        return stored

    monkeypatch.setattr(client.app, "take_part", answer)
    return taken


def _ask(study: SmallStudy, message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = "asked"
    return app(message, study.grid()._contexts[NODE])


def _ask_task(study: SmallStudy, task: TrainTask) -> Message:
    study.grid()  # sets Flower's task identity, without which no message can be made
    return _ask(study, task_message(task, NODE))


def _entries(site: Path) -> tuple[Entry, ...]:
    found = inspect_folder(site, read_public_key(site))
    assert found.fault is None
    return found.entries


def _told(site: Path) -> list[tuple[str, JsonScalar]]:
    return [(entry.event, entry.about.get("code")) for entry in _entries(site)]


def test_question_task_and_answers_are_on_record(study: SmallStudy, site: Path, quick: list[TrainTask]) -> None:
    study.grid()
    _ask(study, encode_join_question(NODE))
    task = signed_task(study, "neuro")
    answer = decode_reply(_ask_task(study, task))
    assert isinstance(answer, SiteUpdate)

    opened, joined, received, sent = _entries(site)
    assert [entry.event for entry in (opened, joined, received, sent)] == [
        "log_opened",
        "answer_sent",
        "task_received",
        "answer_sent",
    ]
    assert joined.about["kind"] == "join_answer"
    assert received.about["coordinator"] == fingerprint(public_hex(coordinator_key(study.runs)))
    assert (received.about["run"], received.about["round"]) == (task.run, task.round)
    assert received.about["task_digest"] == task.digest() == answer.task_digest
    assert received.about["policy_sha256"] == hashlib.sha256((site / "policy.yaml").read_bytes()).hexdigest()
    (parcel,) = answer.parcels
    assert sent.about["parcels_sha256"] == hashlib.sha256(parcel.sha256.encode()).hexdigest()
    assert sent.about["parcel_bytes"] == parcel.size_bytes > 1_000


def test_update_takes_the_head_along_with_its_own_entry_in_it(
    study: SmallStudy, site: Path, quick: list[TrainTask]
) -> None:
    heads = []
    for number in (1, 2):
        answer = decode_reply(_ask_task(study, signed_task(study, "neuro", round=number)))
        assert isinstance(answer, SiteUpdate)
        heads.append(head_from(answer.audit_head))
    assert [head.length for head in heads] == [3, 5]
    assert inspect_folder(site, read_public_key(site), heads).fault is None
    path = site / STATE / LOG
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert inspect_folder(site, read_public_key(site), heads).fault is not None


def test_stored_answer_is_the_same_however_often_it_leaves(study: SmallStudy, site: Path) -> None:
    task = signed_task(study, "neuro")
    answers = [decode_reply(_ask_task(study, task)) for _ in range(2)]
    first, again = (answer for answer in answers if isinstance(answer, SiteUpdate))
    assert first.audit_head != again.audit_head
    assert AnswerStore(site / "state" / "answers").read(task.run, task.round).audit_head == ""
    assert replace(first, deltas={}, audit_head="") == replace(again, deltas={}, audit_head="")
    assert [event for event, _ in _told(site)].count("answer_sent") == 2


def test_refusals_and_failures_are_on_record(study: SmallStudy, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ask_task(study, signed_task(study, "neuro").signed("00"))
    assert _entries(site)[1].about["coordinator"] == "unknown"

    def broken(*_arguments: object) -> None:
        raise DataError("sub-31415 in /srv/scans")

    monkeypatch.setattr(client.app, "take_part", broken)
    _ask_task(study, signed_task(study, "neuro"))
    assert _told(site) == [
        ("log_opened", None),
        ("task_received", None),
        ("task_refused", "signature"),
        ("task_received", None),
        ("site_error", "site_data"),
    ]
    content = (site / STATE / LOG).read_bytes()
    assert b"31415" not in content
    assert b"/srv" not in content


def _is_refused(reply: Message, code: str) -> None:
    answer = decode_reply(reply)
    assert isinstance(answer, Refusal)
    assert (answer.code, tensor_names(reply)) == (code, set())


def test_cut_log_stops_the_site_before_it_takes_a_task_up(
    study: SmallStudy, site: Path, quick: list[TrainTask]
) -> None:
    os.truncate(site / STATE / LOG, 10)
    reply = _ask_task(study, signed_task(study, "neuro"))
    _is_refused(reply, "site_audit")
    assert quick == []
    assert b"audit.log" not in all_bytes(reply)
    assert "was cut" in (site / "site.log").read_text()


@pytest.mark.parametrize(("event", "is_taken_up"), [("task_received", False), ("answer_sent", True)])
def test_nothing_leaves_that_cannot_be_put_on_record(
    study: SmallStudy, quick: list[TrainTask], monkeypatch: pytest.MonkeyPatch, event: str, is_taken_up: bool
) -> None:
    real = AuditLog.append

    def full(log: AuditLog, said: str, about: Mapping[str, JsonScalar]) -> str:
        if said == event:
            raise AuditError("no room in /srv")
        return real(log, said, about)

    monkeypatch.setattr(AuditLog, "append", full)
    _is_refused(_ask_task(study, signed_task(study, "neuro")), "site_audit")
    assert bool(quick) == is_taken_up


def test_site_without_a_key_answers_nothing(study: SmallStudy, site: Path, quick: list[TrainTask]) -> None:
    (site / "keys").rename(site / "elsewhere")
    _is_refused(_ask_task(study, signed_task(study, "neuro")), "site_config")
    assert quick == []
    assert "panfm site init" in (site / "site.log").read_text()
