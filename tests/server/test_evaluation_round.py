"""An evaluation round: what of a peer's report may count, what is on record, and that the best model is on disk first."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm import recipes
from panfm.config import EvaluationConfig, Recipe
from panfm.export.model_folder import ModelFolder, make_card, read_model
from panfm.models.build import initial_parameters
from panfm.protocol import PROTOCOL_VERSION, EvaluateTask, EvaluationMetrics, JoinAnswer, Refusal, SiteReport, Task
from panfm.reporting.record import Event, RoundEvaluated, SiteEvaluated, read_record
from panfm.signing import is_signed_by, public_hex
from server.best_model import best_model
from server.evaluation_round import Asked, Evaluator, judged, why_left_out
from server.evaluations import Evaluations
from server.exchange import Exchanged, Fate
from server.run_record import RunRecord
from tests.client.small_study import SmallStudy
from tests.client.test_evaluation import hold_out

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
CONFIG = EvaluationConfig(every=1, numbers=["age"], classes=["sex"])
ORGANS = ("brain", "heart")


def _recipe() -> Recipe:
    recipe = recipes.recipe_of(recipes.load(["recipe=smoke"]))
    return replace(recipe, federation=replace(recipe.federation, evaluation=CONFIG))


def _task(**changes: Any) -> EvaluateTask:
    values: dict[str, Any] = {"run": "r", "round": 2, "site": "north", "recipe": "", "student": {}, "teacher": {}}
    return EvaluateTask(**(values | changes))


ASKED = Asked.of(_task(), ORGANS)


def _metrics(**changes: Any) -> EvaluationMetrics:
    told: dict[str, Any] = {
        "loss": 0.5,
        "loss_patch": 0.4,
        "loss_organ": None,
        "collapse_loss": 0.8,
        "share": {"brain": 1.0},
        "lift": {"brain": 1.0},
        "share_entropy": None,
        "probes": {"age": -0.5, "sex": 0.5},
        "seconds": 1.0,
    }
    return EvaluationMetrics(**(told | changes))


def _report(task: EvaluateTask, **changes: Any) -> SiteReport:
    values: dict[str, Any] = {
        "run": task.run,
        "round": task.round,
        "site": task.site,
        "task_digest": task.digest(),
        "num_subjects": 9,
        "organ_subjects": {"brain": 9},
        "metrics": _metrics(),
    }
    return SiteReport(**(values | changes))


def test_an_honest_report_counts() -> None:
    assert why_left_out(ASKED, _report(_task()), CONFIG) is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"run": "other"}, "run"),
        ({"round": 1}, "round"),
        ({"site": "south"}, "site"),
        ({"task_digest": "0"}, "another task"),
        ({"num_subjects": 0}, "no subject"),
        ({"organ_subjects": {"brain": 10}}, "outside 0"),
        ({"organ_subjects": {"brain": -1}}, "outside 0"),
        ({"organ_subjects": {"liver": 1}}, "did not declare"),
        ({"metrics": _metrics(share={"liver": 1.0})}, "share of an organ"),
        ({"metrics": _metrics(lift={"liver": 1.0})}, "lift of an organ"),
        ({"metrics": _metrics(probes={"zip_code": 0.5})}, "does not name"),
        ({"metrics": _metrics(probes={"age": -1e9})}, "probe age"),
        ({"metrics": _metrics(probes={"sex": -0.1})}, "probe sex"),
        ({"metrics": _metrics(probes={"age": math.nan})}, "probe age"),
        ({"metrics": _metrics(loss=-1.0)}, "metric loss "),
        ({"metrics": _metrics(collapse_loss=math.inf)}, "metric collapse_loss"),
        ({"metrics": _metrics(share_entropy=math.nan)}, "metric share_entropy"),
        ({"metrics": _metrics(lift={"brain": 1e12})}, "metric lift.brain"),
    ],
)
def test_a_report_that_is_not_as_it_should_be_is_left_out(changes: dict[str, Any], word: str) -> None:
    reason = why_left_out(ASKED, _report(_task(), **changes), CONFIG)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize(
    ("exchanged", "outcome"),
    [
        ({"fate": Fate.late, "reason": "no answer within 9 s"}, "late"),
        ({"fate": Fate.failed, "reason": "it ended"}, "failed"),
        ({"fate": Fate.left_out, "reason": "other code"}, "left_out"),
        ({"answer": Refusal(run="r", round=2, site="north", code="hours", reason="later")}, "refused"),
        ({"answer": Refusal(run="r", round=2, site="north", code="site_data", reason="mend")}, "failed"),
        ({"answer": None}, "left_out"),
        ({"answer": _report(_task(), round=1)}, "left_out"),
        ({"answer": _report(_task())}, "accepted"),
    ],
)
def test_everything_that_can_become_of_a_task_has_its_word(exchanged: dict[str, Any], outcome: str) -> None:
    values: dict[str, Any] = {
        "node": 1,
        "site": "north",
        "round": 2,
        "fate": Fate.answered,
        "seconds": 3.0,
        "bytes_up": 5,
    }
    event = judged(ASKED, Exchanged(**(values | exchanged)), CONFIG)
    assert (event.outcome, event.round, event.site, event.bytes_up) == (outcome, 2, "north", 5)
    assert bool(event.reason) is (outcome != "accepted")
    assert bool(event.metrics) is (outcome == "accepted")


class _Sites:
    """Sites that report as they are told to; remembers what they were asked."""

    def __init__(self, ratios: Mapping[str, float]) -> None:
        self.ratios = dict(ratios)
        self.asked: list[EvaluateTask] = []

    def __call__(self, tasks: dict[int, Task]) -> Iterator[Exchanged]:
        for node in list(tasks):
            task = tasks.pop(node)  # as the exchange does
            assert isinstance(task, EvaluateTask)
            self.asked.append(task)
            yield Exchanged(node=node, site=task.site, round=1, fate=Fate.overdue)
            told = _metrics(loss_patch=self.ratios[task.site], collapse_loss=1.0, share={}, lift={}, probes={})
            report = _report(task, metrics=told, organ_subjects={})
            yield Exchanged(node=node, site=task.site, round=task.round, fate=Fate.answered, answer=report)


def _site(name: str, *organs: str) -> JoinAnswer:
    return JoinAnswer(site=name, organs=organs, protocol_version=PROTOCOL_VERSION, panfm_version="0")


def _model(recipe: Recipe, number: int) -> ModelFolder:
    student, teacher = (initial_parameters(recipe.model, recipe.organs, 10 * number + seed) for seed in (0, 1))
    card = make_card("r", number, student, teacher, recipe, ("0", "0"))
    return ModelFolder(student=student, teacher=teacher, recipe=recipe, card=card)


@pytest.fixture
def sites() -> _Sites:
    return _Sites({"north": 0.5, "south": 0.7})


@pytest.fixture
def evaluator(tmp_path: Path, sites: _Sites) -> Evaluator:
    recipe = _recipe()
    return Evaluator(
        run="r",
        recipe=recipe,
        key=KEY,
        folder=tmp_path,
        record=RunRecord(tmp_path),
        past=Evaluations(recipe.federation),
        ask=sites,
    )


def _evaluate(evaluator: Evaluator, number: int) -> RoundEvaluated:
    taking_part = {2: _site("south", "liver"), 1: _site("north", "brain", "heart")}
    model = _model(evaluator.recipe, number)
    return evaluator.evaluate(
        model, taking_part, lambda tensors: {n: t.half().float() for n, t in tensors.items()}, "ab"
    )


def test_sites_get_their_own_groups_as_they_will_receive_them_and_signed(evaluator: Evaluator, sites: _Sites) -> None:
    _evaluate(evaluator, 1)
    north, south = sites.asked
    assert {name.split(".")[1] for name in north.student if name.startswith("organs.")} == {"brain", "heart"}
    assert {name.split(".")[1] for name in south.teacher if name.startswith("organs.")} == {"liver"}
    model = _model(evaluator.recipe, 1)
    for name, tensor in north.teacher.items():
        assert torch.equal(tensor, model.teacher[name].half().float())
    for task in (north, south):
        assert is_signed_by(public_hex(KEY), task.digest(), task.signature)
        assert recipes.recipe_from_yaml(task.recipe) == evaluator.recipe


def test_the_record_tells_who_said_what_and_what_it_comes_to(evaluator: Evaluator, tmp_path: Path) -> None:
    summary = _evaluate(evaluator, 1)
    *told, last = list(read_record(tmp_path / "record.jsonl"))
    assert [(e.site, e.outcome) for e in told if isinstance(e, SiteEvaluated)] == [
        ("north", "accepted"),
        ("south", "accepted"),
    ]
    assert last == summary
    assert (summary.sites, summary.model_digest) == (["north", "south"], "ab")
    assert summary.score == pytest.approx(0.6)


def test_the_best_model_is_kept_and_no_other(evaluator: Evaluator, sites: _Sites, tmp_path: Path) -> None:
    for number, ratio in enumerate((0.5, 0.4, 0.6), start=1):
        sites.ratios["north"] = ratio
        _evaluate(evaluator, number)
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["round-0002"]
    kept, expected = read_model(best_model(tmp_path, 2)), _model(evaluator.recipe, 2)
    assert all(torch.equal(kept.teacher[name], tensor) for name, tensor in expected.teacher.items())


class _Died(Exception):
    pass


@pytest.mark.parametrize("kind", [SiteEvaluated, RoundEvaluated])
def test_whatever_round_the_record_names_has_its_model_on_disk(
    evaluator: Evaluator, sites: _Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Event]
) -> None:
    _evaluate(evaluator, 1)
    sites.ratios["north"] = 0.1
    write = RunRecord.write

    def dies(record: RunRecord, event: Event) -> None:
        if isinstance(event, kind):
            raise _Died
        write(record, event)

    with monkeypatch.context() as patched:
        patched.setattr(RunRecord, "write", dies)
        with pytest.raises(_Died):
            _evaluate(evaluator, 2)
    told = [event for event in read_record(tmp_path / "record.jsonl") if isinstance(event, RoundEvaluated)]
    assert told[-1].best_round == 1
    assert read_model(best_model(tmp_path, 1)).card.round == 1
    assert _evaluate(evaluator, 2).best_round == 2, "again, by the next process"
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["round-0002"]


def _held_out_study(study: SmallStudy) -> SmallStudy:
    for folder in study.hospitals.values():
        hold_out(folder)
    return study.with_settings("rounds=1", "federation.evaluation.every=1", "tensorboard=1", name="evaluated")


def test_a_whole_study_evaluates_and_is_followed(study: SmallStudy) -> None:
    asked = _held_out_study(study)
    asked.conduct()
    assert {event.outcome for event in asked.events(SiteEvaluated)} == {"accepted"}
    (summary,) = asked.events(RoundEvaluated)
    assert (summary.sites, summary.best_round) == (sorted(asked.hospitals), 1)
    kept, exported = (read_model(folder) for folder in (best_model(asked.folder, 1), asked.folder / "model"))
    assert kept.card == exported.card
    assert len(list((asked.folder / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_a_look_changes_nothing(study: SmallStudy) -> None:
    asked = _held_out_study(study).with_settings("rounds=3", "federation.evaluation.every=2", name="evaluated")
    plain = study.with_settings("rounds=3", name="plain")
    for run in (asked, plain):
        run.conduct()
    assert [event.round for event in asked.events(RoundEvaluated)] == [2, 3]
    models = [read_model(run.folder / "model").card for run in (asked, plain)]
    assert (models[0].student_digest, models[0].teacher_digest) == (models[1].student_digest, models[1].teacher_digest)
