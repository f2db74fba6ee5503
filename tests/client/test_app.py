"""The hospital's door: whatever goes wrong behind it, a coded line passes and no other byte."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

import client.app
from client.app import app
from client.messages import encode_reply
from panfm.errors import CheckpointError, ConfigError, DataError, PanfmError, ProtocolError, RunError
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate
from panfm.reporting.record import SiteAnswered
from server.messages import decode_reply, encode_join_question, encode_task
from server.run_folder import RECORD_FILE
from server.study import conduct
from tests.client.small_study import HELD, SmallStudy, all_bytes, signed_task

SECRET = "/srv/hospital/scans/sub-31415_brain.nii"


def _ask(study: SmallStudy, message: Message, folder: str | None = None) -> Message:
    message.metadata.__dict__["_message_id"] = "asked"
    grid = study.grid()
    context = grid._contexts[1002]
    assert Path(str(context.node_config["site-folder"])).name == "neuro"
    if folder is not None:
        context = Context(run_id=1, node_id=1, node_config={"site-folder": folder}, state=RecordDict(), run_config={})
    return app(message, context)


def _task(study: SmallStudy) -> Message:
    study.grid()  # sets Flower's task identity, without which no message can be made
    return encode_task(signed_task(study, "neuro"), 1002)


def test_question_and_task_are_answered(study: SmallStudy) -> None:
    study.grid()
    joined = decode_reply(_ask(study, encode_join_question(1002)))
    assert isinstance(joined, JoinAnswer)
    assert (joined.site, joined.organs) == ("neuro", HELD["neuro"])
    answered = decode_reply(_ask(study, _task(study)))
    assert isinstance(answered, SiteUpdate)
    assert answered.site == "neuro"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(SECRET), "site_config"),
        (DataError(SECRET), "site_data"),
        (ProtocolError(SECRET), "site_protocol"),
        (CheckpointError(SECRET), "site_parameters"),
        (RunError(SECRET), "site_training"),
        (MemoryError(SECRET), "site_memory"),
        (PanfmError(SECRET), "site_error"),
        (FileNotFoundError(2, "No such file", SECRET), "site_error"),
        (KeyError(SECRET), "site_error"),
        (ExceptionGroup(SECRET, [ValueError(SECRET)]), "site_error"),
    ],
)
def test_no_word_of_an_exception_passes_the_door(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def broken(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(client.app, "take_part", broken)
    reply = _ask(study, _task(study))

    assert not reply.has_error()
    answer = decode_reply(reply)
    assert isinstance(answer, Refusal)
    assert answer.code == code
    assert "31415" not in all_bytes(reply).decode(errors="replace")
    assert SECRET in (study.hospitals["neuro"] / "site.log").read_text(), "the site itself can read what happened"


def test_exception_while_the_answer_is_written_does_not_pass_either(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = encode_reply

    def broken(answer: JoinAnswer | SiteUpdate | Refusal, message: Message) -> Message:
        if isinstance(answer, SiteUpdate):
            raise TypeError(SECRET)
        return real(answer, message)

    monkeypatch.setattr(client.app, "encode_reply", broken)
    reply = _ask(study, _task(study))
    assert not reply.has_error()
    assert b"31415" not in all_bytes(reply)


def test_planted_path_and_pseudonym_reach_no_byte_of_a_whole_run(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real fault with real words: a scan was changed after it was prepared, and the store names it and its subject."""
    study = study.with_settings("rounds=1", "federation.min_sites=1")
    store = study.hospitals["neuro"] / "store" / "brain"
    for volume in store.glob("*.npy"):
        volume.write_bytes(volume.read_bytes()[:-1] + b"\x7f")
    subject = next(store.glob("*.npy")).name.partition("@")[0]
    grid = study.grid()

    with pytest.raises(PanfmError, match="brain"):
        conduct(study.settings(), grid)

    (answer,) = (event for event in study.events(SiteAnswered) if event.site == "neuro")
    assert answer.outcome == "failed"
    assert answer.reason == "site_data: the site's prepared scans are missing or damaged; its own log says which"
    log = (study.hospitals["neuro"] / "site.log").read_text()
    assert subject in log
    assert "has changed since it was prepared" in log
    everything = [all_bytes(message) for _, message in (*grid.sent, *grid.received)]
    everything.append((study.folder / RECORD_FILE).read_bytes())
    for passed in everything:
        assert b"sub-0" not in passed
        assert str(study.hospitals["neuro"].parent).encode() not in passed
        assert b"has changed" not in passed


@pytest.mark.parametrize("folder", ["", "/nowhere/at/all"])
def test_node_without_a_folder_says_so_and_nothing_more(study: SmallStudy, folder: str) -> None:
    answer = decode_reply(_ask(study, _task(study), folder))
    assert isinstance(answer, Refusal)
    assert answer.code == "site_config"
    assert "nowhere" not in answer.reason


def test_message_without_a_task_is_refused(study: SmallStudy) -> None:
    study.grid()
    for content in (
        RecordDict(),
        RecordDict({"envelope": ConfigRecord({"kind": "train_task"})}),
    ):
        message = Message(content, dst_node_id=1002, message_type=MessageType.TRAIN)
        answer = decode_reply(_ask(study, message))
        assert isinstance(answer, Refusal)
        assert answer.code.startswith("site_")


def test_a_persons_stop_is_no_answer(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(client.app, "take_part", stop)
    with pytest.raises(KeyboardInterrupt):
        _ask(study, _task(study))


def test_nothing_stays_attached_to_the_log(study: SmallStudy) -> None:
    before = list(logging.getLogger("panfm.client").handlers)
    _ask(study, _task(study), "/nowhere/at/all")
    assert logging.getLogger("panfm.client").handlers == before
