"""The hospital's door: whatever goes wrong behind it, a coded line passes and no other byte."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

import client.app
from client.app import app
from client.messages import encode_reply
from client.workspace import Workspace
from panfm.errors import CheckpointError, ConfigError, DataError, PanfmError, ProtocolError, RunError
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate, TrainTask
from panfm.reporting.record import RunFinished, SiteAnswered, SiteJoined
from panfm.site.egress import Released
from panfm.site.policy import Bounds, Public
from panfm.site.policy_file import read_policy, write_policy
from server.messages import decode_reply, encode_join_question
from server.run_folder import RECORD_FILE
from server.study import conduct
from tests.client.small_study import HELD, SmallStudy, all_bytes, signed_task, task_message

ROOT = Path(__file__).resolve().parents[2]
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
    return task_message(signed_task(study, "neuro"), 1002)


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

    def broken(released: Released, message: Message) -> Message:
        if isinstance(released.answer, SiteUpdate):
            raise TypeError(SECRET)
        return real(released, message)

    monkeypatch.setattr(client.app, "encode_reply", broken)
    reply = _ask(study, _task(study))
    assert not reply.has_error()
    assert b"31415" not in all_bytes(reply)


def test_planted_path_and_pseudonym_reach_no_byte_of_a_whole_run(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real fault with real words: scans were changed after they were prepared, and the store names each and its subject."""
    study = study.with_settings("rounds=1", "federation.min_sites=1")
    store = study.hospitals["neuro"] / "store"
    for volume in store.glob("*/*.npy"):
        volume.write_bytes(volume.read_bytes()[:-1] + b"\x7f")
    grid = study.grid()

    with pytest.raises(PanfmError, match="brain"):
        conduct(study.settings(), grid)

    (answer,) = (event for event in study.events(SiteAnswered) if event.site == "neuro")
    assert answer.outcome == "failed"
    assert answer.reason == "site_data: the site's prepared scans are missing or damaged; its own log says which"
    log = (study.hospitals["neuro"] / "site.log").read_text()
    assert "sub-0" in log
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


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(client.app, "take_part", fail)


def test_a_persons_stop_is_no_answer_and_has_no_words(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt(SECRET))
    with pytest.raises(KeyboardInterrupt) as stopped:
        _ask(study, _task(study))
    assert SECRET not in _said(stopped.value)


@pytest.mark.parametrize(("code", "ends_with"), [(0, 0), (3, 3), (SECRET, 1), (None, 1)])
def test_programs_end_is_no_answer_and_has_no_words(
    study: SmallStudy, monkeypatch: pytest.MonkeyPatch, code: str | int | None, ends_with: int
) -> None:
    """Flower's own handler of SIGTERM ends the program so."""
    _failing(monkeypatch, SystemExit(code))
    with pytest.raises(SystemExit) as ended:
        _ask(study, _task(study))
    assert ended.value.code == ends_with
    assert SECRET not in _said(ended.value)


def _said(error: BaseException) -> str:
    """What Flower would make of an exception, and what a traceback would show of those before it."""
    assert error.__suppress_context__
    return f"{type(error)}:<'{error}'> {error!r}"


class _OfAKindThatNobodyCatches(BaseException):
    """As asyncio's or a library's own."""


def test_exceptions_that_are_no_exceptions_are_coded_too(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (_OfAKindThatNobodyCatches(SECRET), GeneratorExit(SECRET), RecursionError(SECRET)):
        _failing(monkeypatch, error)
        reply = _ask(study, _task(study))
        answer = decode_reply(reply)
        assert isinstance(answer, Refusal)
        assert answer.code == "site_error"
        assert b"31415" not in all_bytes(reply)


def test_site_that_cannot_even_say_so_says_nothing(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_released: Released, _message: Message) -> Message:
        raise MemoryError(SECRET)

    task = _task(study)
    monkeypatch.setattr(client.app, "encode_reply", broken)
    with pytest.raises(RuntimeError, match=r"^the site could not answer; its own log says why$") as failed:
        _ask(study, task)
    assert SECRET not in _said(failed.value)


def test_answer_that_the_gate_stops_is_a_coded_line(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_site(task: TrainTask, _workspace: Workspace) -> Refusal:
        return Refusal(run=task.run, round=task.round, site=SECRET, code="hours", reason=SECRET)

    monkeypatch.setattr(client.app, "take_part", other_site)
    reply = _ask(study, _task(study))
    answer = decode_reply(reply)
    assert isinstance(answer, Refusal)
    assert answer.code == "site_egress"
    assert b"31415" not in all_bytes(reply)
    assert "a refusal in words of its own" in (study.hospitals["neuro"] / "site.log").read_text()


class _Untouchable(dict[str, bool | int | float | str]):
    """What a run is submitted with, as somebody else wrote it."""

    def _touched(self, *_arguments: object) -> NoReturn:
        raise AssertionError("the client read the run config")

    __getitem__ = __iter__ = __contains__ = __len__ = get = items = keys = values = _touched


def test_what_a_run_was_submitted_with_is_not_read(study: SmallStudy) -> None:
    """It is outside the bundle's hash, so nothing in it may matter."""
    grid = study.grid()
    context = grid._contexts[1002]
    poisoned = Context(
        run_id=1, node_id=1002, node_config=context.node_config, state=RecordDict(), run_config=_Untouchable()
    )
    for message in (encode_join_question(1002), _task(study)):
        message.metadata.__dict__["_message_id"] = "asked"
        assert not isinstance(decode_reply(app(message, poisoned)), Refusal)
    with pytest.raises(AssertionError):
        poisoned.run_config.get("composed")


def _names_in(path: Path) -> set[str]:
    """Every name and attribute in a source."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in tree
        if isinstance(node, ast.Name | ast.Attribute)
    }


def _calls_of(name: str, *rooms: str) -> list[str]:
    """Files that call a function or class by that name."""
    return sorted(
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == name
    )


def test_there_is_one_way_out() -> None:
    """One place makes messages, it takes what passed the gate, and nobody but the gate makes that."""
    assert not any("run_config" in _names_in(path) for path in (ROOT / "client").rglob("*.py"))
    assert _calls_of("Message", "client") == ["client/messages.py"]
    assert set(_calls_of("RecordDict", "client")) == {"client/messages.py"}
    assert inspect.signature(encode_reply).parameters["released"].annotation == "Released"
    assert set(_calls_of("encode_reply", "client")) == {"client/app.py"}
    assert set(_calls_of("Released", "client", "panfm")) == {"panfm/site/egress.py"}
    assert "state" not in _names_in(ROOT / "client" / "app.py"), "what a context keeps, Flower takes along"


def test_considered_no_is_on_record_at_both_sides_and_the_round_goes_on(study: SmallStudy) -> None:
    folder = study.hospitals["abdominal"]
    strict = {"pretrain.steps_per_round": Bounds(most=1)}
    write_policy(folder, replace(read_policy(folder), bounds=strict))

    grid = study.grid()
    conduct(study.settings(), grid)

    reason = "the recipe's pretrain.steps_per_round is outside the bounds of the site's policy"
    told = [(answer.outcome, answer.reason) for answer in study.answered("abdominal")]
    assert told == [("refused", f"recipe_out_of_bounds: {reason}")] * 2
    assert {answer.outcome for site in ("cardiac", "neuro") for answer in study.answered(site)} == {"accepted"}
    assert [end.status for end in study.events(RunFinished)] == ["complete"], "the liver is at another site, too"
    log = (folder / "site.log").read_text()
    assert log.count(reason) == 2
    assert "pretrain.steps_per_round is 2" in log, "the site itself is told the value"
    assert not any(b"is 2" in all_bytes(message) for _, message in grid.received)


def test_nothing_stays_attached_to_the_log(study: SmallStudy) -> None:
    before = list(logging.getLogger("panfm.client").handlers)
    _ask(study, _task(study), "/nowhere/at/all")
    assert logging.getLogger("panfm.client").handlers == before


def test_hospital_that_makes_only_its_updates_public_takes_part_all_the_same(study: SmallStudy) -> None:
    for folder in study.hospitals.values():
        write_policy(folder, replace(read_policy(folder), public=(Public.updates,), nominal_subjects=50))
    study.conduct()
    assert [end.status for end in study.events(RunFinished)] == ["complete"]
    assert {tuple(joined.num_subjects) for joined in study.events(SiteJoined)} == {()}
    for answer in study.events(SiteAnswered):
        assert (answer.outcome, answer.num_subjects, answer.metrics) == ("accepted", 50, {})
        assert set(answer.organ_subjects.values()) == {50}
