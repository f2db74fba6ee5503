"""A round when a site does what it should not: it is left out with one line of reason, and the round goes on without it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.messages import decode_task
from panfm.errors import PanfmError
from panfm.export.model_folder import read_model
from panfm.groups import keep_groups
from panfm.models.build import initial_parameters
from panfm.protocol import JoinAnswer, Refusal, TrainTask, expect, to_envelope
from panfm.reporting.record import RoundFinished, RunFinished, SiteAnswered
from panfm.signing import is_signed_by, public_hex
from server.run_folder import RECORD_FILE, coordinator_key
from server.study import conduct
from tests.client.small_study import (
    HELD,
    SmallStudy,
    SpyGrid,
    all_bytes,
    app_that_trains,
    copy_study,
    metrics,
    quick_train,
    quick_update,
    reply_with,
    same_bits,
    site_of,
    to_content,
)

Fault = Callable[[Message, Context], Message]

SECRET = "/srv/hospital/scans/sub-31415_brain.nii"
"""What an exception at a site might say; no byte of it may reach the coordinator."""


def _task_in(message: Message) -> TrainTask:
    return expect(decode_task(message), TrainTask)


def _answering(change: Callable[[TrainTask], dict[str, object]]) -> Fault:
    """A site that answers a task with an update in which something differs."""

    def train(message: Message, _context: Context) -> Message:
        task = _task_in(message)
        return reply_with(quick_update(task, **change(task)), message)

    return train


def _first(task: TrainTask) -> str:
    return sorted(task.student)[0]


def _with_delta(task: TrainTask, name: str, tensor: torch.Tensor) -> dict[str, object]:
    return {"deltas": quick_update(task).deltas | {name: tensor}}


def _nan(task: TrainTask) -> dict[str, object]:
    delta = torch.zeros_like(task.student[_first(task)])
    delta.view(-1)[0] = math.nan
    return _with_delta(task, _first(task), delta)


def _raise(message: Message, _context: Context) -> Message:
    raise OSError(f"cannot open {SECRET}")


def _malformed(message: Message, _context: Context) -> Message:
    return Message(RecordDict({"words": ConfigRecord({"of": "another program"})}), reply_to=message)


def _no_json(message: Message, _context: Context) -> Message:
    header = ConfigRecord({"kind": "site_update", "header": '{"run": '})
    return Message(RecordDict({"envelope": header}), reply_to=message)


def _no_array(message: Message, _context: Context) -> Message:
    broken = Array(dtype="uint8", shape=(2,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00 not an array")
    content = to_content(to_envelope(quick_update(_task_in(message))))
    content["parcel"] = ArrayRecord({"body": broken})
    return Message(content, reply_to=message)


def _a_join(message: Message, _context: Context) -> Message:
    joined = JoinAnswer(site="neuro", organs=("brain",), protocol_version=1, panfm_version="0")
    return reply_with(joined, message)


def _its_own_task(message: Message, _context: Context) -> Message:
    return Message(message.content, reply_to=message)


def _refusal(message: Message, _context: Context) -> Message:
    task = _task_in(message)
    words = "the budget of this month\nis spent" + " and so on" * 100
    refusal = Refusal(run=task.run, round=task.round, site=task.site, code="budget", reason=words)
    return reply_with(refusal, message)


FAULTS: list[tuple[str, Fault, str, str]] = [
    ("raises", _raise, "failed", "ended without an answer"),
    ("NaN", _answering(_nan), "left_out", "holds values that are not finite"),
    (
        "wrong shape",
        _answering(lambda t: _with_delta(t, _first(t), torch.zeros(3, 3, 3))),
        "left_out",
        "has shape (3, 3, 3), expected",
    ),
    (
        "wrong dtype",
        _answering(lambda t: _with_delta(t, _first(t), torch.zeros_like(t.student[_first(t)]).double())),
        "left_out",
        "has dtype torch.float64",
    ),
    (
        "unknown tensor",
        _answering(lambda t: _with_delta(t, "trunk.backdoor", torch.zeros(1))),
        "left_out",
        "holds tensor 'trunk.backdoor', which the site was not sent",
    ),
    (
        "an organ it was not sent",
        _answering(lambda t: _with_delta(t, "organs.liver.token", torch.zeros(1))),
        "left_out",
        "holds tensor 'organs.liver.token', which the site was not sent",
    ),
    ("wrong round", _answering(lambda t: {"round": t.round + 1}), "left_out", "answers round "),
    ("another site's name", _answering(lambda _t: {"site": "cardiac"}), "left_out", "answers site 'cardiac'"),
    ("another run", _answering(lambda _t: {"run": "another"}), "left_out", "answers run 'another'"),
    ("another task", _answering(lambda _t: {"task_digest": "0" * 64}), "left_out", "answers task_digest"),
    ("too many steps", _answering(lambda _t: {"num_steps": 3}), "left_out", "did 3 steps, expected 1 to 2"),
    (
        "a huge delta",
        _answering(lambda t: _with_delta(t, _first(t), 1e6 + t.student[_first(t)])),
        "left_out",
        "L2 norm",
    ),
    (
        "collapsed",
        _answering(lambda _t: {"metrics": metrics(spread={"brain": 0.01})}),
        "left_out",
        "features collapsed",
    ),
    ("infinite metric", _answering(lambda _t: {"metrics": metrics(loss=math.inf)}), "left_out", "'loss' is not finite"),
    ("other code", _malformed, "left_out", "lacks the record 'envelope'"),
    ("half a header", _no_json, "left_out", "malformed site_update"),
    ("no array", _no_array, "left_out", "parcel cannot be read"),
    ("a join answer", _a_join, "left_out", "was to send an update or a refusal, it sent JoinAnswer"),
    ("the task itself", _its_own_task, "left_out", "holds a task or a question instead of an answer"),
    ("refuses", _refusal, "refused", "budget: the budget of this month is spent"),
]


@pytest.fixture(scope="module")
def faulty(hospitals_template: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallStudy:
    """A run in each round of which the same site does something else that it should not."""
    study = copy_study(hospitals_template, tmp_path_factory.mktemp("faulty")).with_settings(f"rounds={len(FAULTS)}")

    def train(message: Message, context: Context) -> Message:
        if site_of(context) != "neuro":
            return quick_train(message, context)
        return FAULTS[_task_in(message).round - 1][1](message, context)

    with pytest.raises(PanfmError, match="nobody's training of brain counted"):
        study.conduct(app_that_trains(train))
    return study


@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=[fault[0] for fault in FAULTS])
def test_fault_at_one_site_is_named_and_the_round_goes_on(faulty: SmallStudy, number: int) -> None:
    _, _, outcome, reason = FAULTS[number - 1]
    answers = {answer.site: answer for answer in faulty.events(SiteAnswered) if answer.round == number}

    fault = answers.pop("neuro")
    assert (fault.outcome, fault.num_subjects, fault.metrics) == (outcome, 0, {})
    assert reason in fault.reason
    assert fault.reason.isprintable()
    assert len(fault.reason) <= 200
    assert {site: answer.outcome for site, answer in answers.items()} == dict.fromkeys(
        ["abdominal", "cardiac"], "accepted"
    )
    (average,) = (average for average in faulty.events(RoundFinished) if average.round == number)
    assert set(average.weights["trunk"]) == {"abdominal", "cardiac"}
    assert average.unchanged_groups == {"brain": "no accepted update trained it in this round"}


def test_group_that_nobody_trained_in_any_round_is_bit_for_bit_the_first(faulty: SmallStudy) -> None:
    model, config = read_model(faulty.folder / "model"), faulty.config
    start = keep_groups(initial_parameters(config.model, config.organs, config.seed), ["brain"])
    assert same_bits(keep_groups(model.student, ["brain"]), start)
    assert same_bits(keep_groups(model.teacher, ["brain"]), start)


def test_the_honest_answers_of_these_tests_are_accepted(study: SmallStudy) -> None:
    """Otherwise a fault could be left out for another reason than its own."""
    study = study.with_settings("rounds=1")
    study.conduct(app_that_trains(quick_train))
    assert [end.status for end in study.events(RunFinished)] == ["complete"]


def test_a_site_that_fails_once_is_asked_again(study: SmallStudy) -> None:
    def train(message: Message, context: Context) -> Message:
        ill = site_of(context) == "neuro" and _task_in(message).round == 1
        return (_raise if ill else quick_train)(message, context)

    study.conduct(app_that_trains(train))
    assert [answer.outcome for answer in study.answered("neuro")] == ["failed", "accepted"]
    assert [end.status for end in study.events(RunFinished)] == ["complete"]


def test_words_of_an_exception_reach_neither_record_nor_report(study: SmallStudy) -> None:
    """Flower carries an exception's words in an error reply; the coordinator does not repeat what it was not told."""
    study = study.with_settings("rounds=1")
    with pytest.raises(PanfmError):
        study.conduct(app_that_trains(_raise))
    assert SECRET.encode() not in (study.folder / RECORD_FILE).read_bytes()


class _SilentGrid(SpyGrid):
    """A grid on which one hospital never answers a task."""

    silent = "neuro"

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        heard = [
            message_id
            for message_id in message_ids
            if self._site_of[message_id] != self.silent
            or self._waiting[message_id].label.metadata.message_type == "query"
        ]
        return super().pull_messages(heard)


def test_answer_that_never_comes_is_late(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.replies.POLL_S", 0.01)
    study = study.with_settings("rounds=1", "federation.round_deadline_s=0.3")
    grid = _SilentGrid(app_that_trains(quick_train), list(study.hospitals.values()), {}, study.runs)

    with pytest.raises(PanfmError, match="brain"):
        conduct(study.settings(), grid)

    (answer,) = study.answered("neuro")
    assert (answer.outcome, answer.reason, answer.bytes_up) == ("late", "no answer within 0 s", 0)
    assert answer.bytes_down > 0
    assert study.answered("cardiac")[0].outcome == "accepted"


def test_tasks_are_signed_for_one_site_and_carry_the_recipe(study: SmallStudy) -> None:
    study = study.with_settings("rounds=1")
    grid = study.conduct(app_that_trains(quick_train))

    public = public_hex(coordinator_key(study.runs))
    tasks = {site: decode_task(message) for site, message in grid.sent if message.metadata.message_type == "train"}
    assert {site: task.site for site, task in tasks.items()} == {site: site for site in HELD}
    for task in tasks.values():
        assert is_signed_by(public, task.digest(), task.signature)
        assert not is_signed_by(public, replace(task, round=2).digest(), task.signature)


def test_arrival_order_changes_no_bit(study: SmallStudy) -> None:
    models = []
    for name, backwards in (("forth", False), ("back", True)):
        turned = study.with_settings("rounds=1", name=name)
        folders = list(study.hospitals.values())
        grid = SpyGrid(app_that_trains(quick_train), folders[::-1] if backwards else folders, {}, study.runs)
        conduct(turned.settings(), grid)
        models.append(read_model(turned.folder / "model"))
        order = [answer.site for answer in turned.events(SiteAnswered)]
        assert order == sorted(HELD, reverse=backwards)
    assert same_bits(models[0].student, models[1].student)
    assert same_bits(models[0].teacher, models[1].teacher)


def test_bytes_on_record_are_the_bytes_that_passed(study: SmallStudy) -> None:
    study = study.with_settings("rounds=1")
    grid = study.conduct(app_that_trains(quick_train))
    for direction, counted in ((grid.sent, "bytes_down"), (grid.received, "bytes_up")):
        for site, message in direction:
            if message.metadata.message_type == "train":
                names = sum(len(name) for record in message.content.array_records.values() for name in record)
                passed = len(all_bytes(message)) - names
                on_record = getattr(study.answered(site)[0], counted)
                assert 0 <= passed - on_record < 1000, "only keys and separators are not counted"


def test_left_out_update_leaves_no_number_behind(study: SmallStudy) -> None:
    study = study.with_settings("rounds=1")
    odd = _answering(lambda _t: {"num_subjects": 31_415, "organ_subjects": {"brain": 31_415, "heart": -5}})
    with pytest.raises(PanfmError):
        study.conduct(app_that_trains(lambda m, c: odd(m, c) if site_of(c) == "neuro" else quick_train(m, c)))
    line = next(
        line
        for line in (study.folder / RECORD_FILE).read_text().splitlines()
        if json.loads(line)["event"] == "site_answered" and json.loads(line)["site"] == "neuro"
    )
    assert "31415" not in line
