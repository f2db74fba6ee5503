"""Attacks by what a coordinator asks for, rather than by code: each works on a client as a tutorial of Flower writes it, which
trusts the message, and fails on ours.

Where our own admission stands against it, the same task is first shown to be admitted by a policy without the bound.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import client.participation
from client.app import app as our_app
from client.messages import decode_task
from panfm import recipes
from panfm.pretrain.local_round import train_round
from panfm.protocol import Answer, Refusal, SiteUpdate, TrainTask, expect
from panfm.signing import sign
from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode
from panfm.site.policy_file import read_policy, write_policy
from panfm.site.refusals import reason_of
from server.messages import decode_reply
from tests.client.small_study import (
    SmallStudy,
    all_bytes,
    app_that_trains,
    finished,
    hospitals_template,
    metrics,
    quick_update,
    reply_with,
    signed_task,
    study,
    task_message,
)

__all__ = ["finished", "hospitals_template", "study"]  # fixtures

SITE, NODE = "neuro", 1002


def _ask(study: SmallStudy, app: ClientApp, task: TrainTask, **run_config: Any) -> Message:
    """The reply of a site's app to a task, over the rehearsal's grid; nothing but the app differs between two calls."""
    grid = study.grid(app)
    message = task_message(task, NODE)
    message.metadata.__dict__["_message_id"] = "asked"
    context = grid._contexts[NODE]
    assert Path(str(context.node_config["site-folder"])).name == SITE
    own = Context(run_id=1, node_id=NODE, node_config=context.node_config, state=RecordDict(), run_config=run_config)
    return app(message, own)


def _answer(study: SmallStudy, app: ClientApp, task: TrainTask) -> Answer:
    return decode_reply(_ask(study, app, task))


def _trusting() -> tuple[ClientApp, list[TrainTask]]:
    """A client as a tutorial writes it, and the tasks that it has done."""
    done: list[TrainTask] = []

    def train(message: Message, _context: Context) -> Message:
        done.append(expect(decode_task(message), TrainTask))
        return reply_with(quick_update(done[-1], num_steps=len(done)), message)

    return app_that_trains(train), done


def _with_policy(study: SmallStudy, **changes: Any) -> Policy:
    """Give the site's policy other values."""
    folder = study.hospitals[SITE]
    policy = replace(read_policy(folder), **changes)
    write_policy(folder, policy)
    return policy


def _asking_for(study: SmallStudy, *overrides: str) -> TrainTask:
    changed = study.with_settings(*overrides)
    return signed_task(study, SITE, recipe=recipes.to_yaml(recipes.recipe_of(changed.config)))


def _refusal(task: TrainTask, code: str, setting: str = "") -> Refusal:
    return Refusal(run=task.run, round=task.round, site=SITE, code=code, reason=reason_of(code, setting))


# ---- recipes ------------------------------------------------------------------------------------------------------------


def test_recipe_without_privacy(study: SmallStudy) -> None:
    """The recipe cannot turn off what the site's policy demands: a recipe that has no privacy is not trained by."""
    task = signed_task(study, SITE)
    assert isinstance(_answer(study, our_app, task), SiteUpdate)

    again = signed_task(study, SITE, run="another")
    _with_policy(study, privacy=PrivacyDemand(mode=PrivacyMode.dp, epsilon=3.0, delta=1e-6))
    assert _answer(study, our_app, again) == _refusal(again, "privacy")


@pytest.mark.parametrize("line", ["privacy: {epsilon: 100.0}", "pretrain: {privacy: off}", "dp: false"])
def test_recipe_that_brings_a_switch_of_its_own(study: SmallStudy, line: str) -> None:
    """There is no such switch to find: a name that is none of a recipe's is a refusal, not a default."""
    honest = signed_task(study, SITE)
    values = yaml.safe_load(honest.recipe)
    for name, value in yaml.safe_load(line).items():
        values[name] = values[name] | value if isinstance(values.get(name), dict) else value
    task = signed_task(study, SITE, recipe=yaml.safe_dump(values))
    assert isinstance(_answer(study, _trusting()[0], task), SiteUpdate)
    assert _answer(study, our_app, task) == _refusal(task, "recipe")


def test_recipe_that_raises_rounds(study: SmallStudy) -> None:
    task = _asking_for(study, "rounds=100000")
    _with_policy(study, bounds={"rounds": Bounds(most=1_000_000)})
    assert isinstance(_answer(study, our_app, task), SiteUpdate)

    task = _signed_anew(study, replace(task, run="another"))
    _with_policy(study, bounds={"rounds": Bounds(most=20)})
    assert _answer(study, our_app, task) == _refusal(task, "recipe_out_of_bounds", "rounds")


def _signed_anew(study: SmallStudy, task: TrainTask) -> TrainTask:
    values = {name: getattr(task, name) for name in ("run", "round", "recipe", "student", "teacher")}
    return signed_task(study, SITE, **values)


LOOKS_UP = "store"
"""A name under which a helpful client lets a run say where its data lie."""


def test_recipe_or_run_that_names_a_path(study: SmallStudy, tmp_path: Path) -> None:
    elsewhere = tmp_path / "payroll.txt"
    elsewhere.write_text("not for the study")

    def helpful(message: Message, context: Context) -> Message:
        task = expect(decode_task(message), TrainTask)
        place = yaml.safe_load(task.recipe).get(LOOKS_UP, context.run_config.get(LOOKS_UP))
        return reply_with(quick_update(task, run=Path(str(place)).read_text()), message)

    honest = signed_task(study, SITE)
    values = yaml.safe_load(honest.recipe) | {LOOKS_UP: str(elsewhere)}
    in_recipe = signed_task(study, SITE, recipe=yaml.safe_dump(values))
    for task, run_config in ((in_recipe, {}), (honest, {LOOKS_UP: str(elsewhere)})):
        assert b"not for the study" in all_bytes(_ask(study, app_that_trains(helpful), task, **run_config))

    assert _answer(study, our_app, in_recipe) == _refusal(in_recipe, "recipe")
    hostile = {LOOKS_UP: str(elsewhere), "site-folder": str(tmp_path), "device": "cuda:7", "composed": str(elsewhere)}
    with_config = decode_reply(_ask(study, our_app, honest, **hostile))
    without = _answer(study, our_app, signed_task(study, SITE, run="another"))
    assert isinstance(with_config, SiteUpdate)
    assert isinstance(without, SiteUpdate)
    assert with_config.parcels == without.parcels


# ---- tasks --------------------------------------------------------------------------------------------------------------


def test_replayed_task(study: SmallStudy) -> None:
    """Asked again and again, a client that trains each time gives as many answers; their mean has less noise than is paid for."""
    task = signed_task(study, SITE)
    trusting, done = _trusting()
    first, second = (_ask(study, trusting, task) for _ in range(2))
    assert len(done) == 2
    assert all_bytes(first) != all_bytes(second)

    first = _ask(study, our_app, task)
    trained = sorted((study.hospitals[SITE] / "state" / "answers").rglob("parcel-*"))
    written = [path.stat().st_mtime_ns for path in trained]
    assert len(trained) == 1
    second = _ask(study, our_app, task)
    assert [path.stat().st_mtime_ns for path in trained] == written
    one, other = decode_reply(first), decode_reply(second)
    assert isinstance(one, SiteUpdate)
    assert isinstance(other, SiteUpdate)
    assert replace(one, audit_head="") == replace(other, audit_head="")


def test_replayed_round_with_another_question(study: SmallStudy) -> None:
    task = signed_task(study, SITE)
    moved = {name: tensor + 1 for name, tensor in task.student.items()}
    other = _signed_anew(study, replace(task, student=moved))
    trusting, done = _trusting()
    for one in (task, other):
        assert isinstance(_answer(study, trusting, one), SiteUpdate)
    assert len(done) == 2

    assert isinstance(_answer(study, our_app, task), SiteUpdate)
    assert _answer(study, our_app, other) == _refusal(other, "round_answered_otherwise")


def test_task_signed_by_another_coordinator(study: SmallStudy) -> None:
    task = signed_task(study, SITE)
    stranger = task.signed(sign(Ed25519PrivateKey.generate(), task.digest()))
    unsigned = task.signed("")
    edited = replace(task, round=2)  # the signature is of another round
    for hostile in (stranger, unsigned, edited):
        assert isinstance(_answer(study, _trusting()[0], hostile), SiteUpdate)
        assert _answer(study, our_app, hostile) == _refusal(hostile, "signature")


# ---- metrics ------------------------------------------------------------------------------------------------------------

VOXELS = [0.4815162342 + place * 1e-7 for place in range(8)]
"""Intensities of eight neighbours, which a coordinator would like to tell apart."""


def test_metric_that_encodes_a_voxel(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss has 64 bits, enough for a voxel each round; of ours, 4 digits are left."""
    honest = signed_task(study, SITE)
    told = []
    for voxel in VOXELS:
        answer = _answer(study, _telling(loss=voxel), honest)
        assert isinstance(answer, SiteUpdate)
        assert answer.metrics is not None
        told.append(answer.metrics.loss)
    assert told == VOXELS

    through_gate = set()
    for place, voxel in enumerate(VOXELS):
        _train_with(monkeypatch, loss=voxel)
        answer = _answer(study, our_app, signed_task(study, SITE, run=f"run-{place}"))
        assert isinstance(answer, SiteUpdate)
        assert answer.metrics is not None
        through_gate.add(answer.metrics.loss)
    assert through_gate == {0.4815}


def test_metric_under_the_name_of_a_subject(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    task = signed_task(study, SITE)
    assert b"sub-4711" in all_bytes(_ask(study, _telling(share={"sub-4711": 0.5}), task))

    _train_with(monkeypatch, share={"sub-4711": 0.5})
    reply = _ask(study, our_app, task)
    assert b"sub-4711" not in all_bytes(reply)
    answer = decode_reply(reply)
    assert isinstance(answer, Refusal)
    assert answer.code == "site_egress"


def _telling(**changes: Any) -> ClientApp:
    """A client that sends whatever metrics it has."""

    def train(message: Message, _context: Context) -> Message:
        return reply_with(quick_update(expect(decode_task(message), TrainTask), metrics=metrics(**changes)), message)

    return app_that_trains(train)


def _train_with(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Training that was brought to put something else into its metrics."""

    def trained(*arguments: Any, **settings: Any) -> Any:
        honest = train_round(*arguments, **settings)
        return replace(honest, metrics=replace(honest.metrics, **changes))

    monkeypatch.setattr(client.participation, "train_round", trained)
