"""How a site evaluates: only on who is held out, once per round, in numbers alone, and never against its policy."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import evaluation
from client.evaluation import evaluate
from client.workspace import Workspace, open_workspace
from panfm import recipes
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore, write_table
from panfm.errors import DataError
from panfm.pretrain.held_out import held_out_loss
from panfm.protocol import EvaluateTask, Refusal, SiteReport
from panfm.signing import sign
from panfm.site.policy import Public, TaskKind
from server.run_folder import coordinator_key
from tests.client.small_study import HELD, SmallStudy, signed_task

HELD_OUT = 3
"""Of the eight subjects of a hospital."""


def hold_out(folder: Path, number: int = HELD_OUT) -> list[str]:
    """Mark the first subjects of a hospital's store as held out; returns their names."""
    store = PreparedStore.open(folder / "store")
    names = sorted({entry.subject for entry in store.entries})[:number]
    marked = [replace(e, split="validation") if e.subject in names else e for e in store.entries]
    write_table(folder / "store", marked)
    return names


@pytest.fixture
def held_out(study: SmallStudy) -> list[str]:
    return hold_out(study.hospitals["neuro"])


@pytest.fixture
def workspace(study: SmallStudy, held_out: list[str]) -> Workspace:
    return open_workspace({"site-folder": str(study.hospitals["neuro"])})


def evaluate_task(study: SmallStudy, **changes: Any) -> EvaluateTask:
    given = signed_task(study, "neuro")
    values: dict[str, Any] = {
        "run": given.run,
        "round": given.round,
        "site": given.site,
        "recipe": given.recipe,
        "student": given.student,
        "teacher": given.teacher,
    }
    task = EvaluateTask(**(values | changes))
    return task.signed(sign(coordinator_key(study.runs), task.digest()))


def _with_probes(study: SmallStudy) -> str:
    recipe = recipes.recipe_of(study.config)
    config = replace(recipe.federation.evaluation, every=1, numbers=["age"], classes=["cat_", "nobody_knows"])
    return recipes.to_yaml(replace(recipe, federation=replace(recipe.federation, evaluation=config)))


def test_report_is_of_those_held_out_and_no_others(
    study: SmallStudy, workspace: Workspace, held_out: list[str]
) -> None:
    task = evaluate_task(study)
    report = evaluate(task, workspace)
    assert isinstance(report, SiteReport)
    assert (report.num_subjects, report.task_digest) == (HELD_OUT, task.digest())
    entries = [e for e in PreparedStore.open(workspace.folder / "store").entries if e.subject in held_out]
    assert report.organ_subjects == dict(Counter(entry.organ for entry in entries))

    recipe = recipes.recipe_from_yaml(task.recipe)
    store = PreparedStore.open(workspace.folder / "store")
    dataset = SubjectDataset(store, HELD["neuro"], recipe.organs, "validation")
    expected = held_out_loss(task.student, task.teacher, dataset, recipe, site="neuro")
    assert (report.metrics.loss, report.metrics.share) == (expected.loss, expected.share)
    assert report.metrics.probes == {}


def test_nobody_is_trained_on_who_is_held_out(workspace: Workspace, held_out: list[str]) -> None:
    trained = {subject for subjects in workspace.subjects().values() for subject in subjects}
    judged = {subject for subjects in workspace.held_out_subjects().values() for subject in subjects}
    assert judged == set(held_out)
    assert not trained & judged
    assert len(trained) == 8 - HELD_OUT


def test_a_row_marked_for_something_else_keeps_a_subject_out_of_both(study: SmallStudy, held_out: list[str]) -> None:
    folder = study.hospitals["neuro"]
    store = PreparedStore.open(folder / "store")
    first = next(place for place, entry in enumerate(store.entries) if entry.subject == held_out[0])
    marked = [replace(entry, split="test") if place == first else entry for place, entry in enumerate(store.entries)]
    write_table(folder / "store", marked)
    workspace = open_workspace({"site-folder": str(folder)})
    for subjects in (workspace.subjects(), workspace.held_out_subjects()):
        assert all(held_out[0] not in of_organ for of_organ in subjects.values())


def test_probes_are_told_where_the_site_has_labels(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four of eight held out and a lower bar: FEWEST_SUBJECTS is more than such a hospital has."""
    monkeypatch.setattr("panfm.evaluation.site_probes.FEWEST_SUBJECTS", 3)
    hold_out(study.hospitals["neuro"], 4)
    workspace = open_workspace({"site-folder": str(study.hospitals["neuro"])})
    report = evaluate(evaluate_task(study, recipe=_with_probes(study)), workspace)
    assert isinstance(report, SiteReport)
    assert "age" in report.metrics.probes
    assert "nobody_knows" not in report.metrics.probes

    (workspace.folder / "labels.csv").unlink()
    without = evaluate(evaluate_task(study, recipe=_with_probes(study), round=2), workspace)
    assert isinstance(without, SiteReport)
    assert without.metrics.probes == {}


def test_of_many_subjects_the_same_few_are_looked_at(study: SmallStudy, workspace: Workspace) -> None:
    recipe = recipes.recipe_of(study.config)
    few = replace(recipe.federation, evaluation=replace(recipe.federation.evaluation, max_subjects=2))
    text = recipes.to_yaml(replace(recipe, federation=few))
    reports = [evaluate(evaluate_task(study, recipe=text, round=number), workspace) for number in (1, 2)]
    first, second = (report for report in reports if isinstance(report, SiteReport))
    assert first.num_subjects == 2
    assert replace(first.metrics, seconds=0.0) == replace(second.metrics, seconds=0.0)


def test_a_task_is_evaluated_once_and_answered_from_the_store(
    study: SmallStudy, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = evaluate_task(study)
    first = evaluate(task, workspace)
    monkeypatch.setattr(evaluation, "held_out_loss", lambda *_a, **_k: pytest.fail("evaluated again"))
    assert evaluate(task, open_workspace({"site-folder": str(workspace.folder)})) == first
    other = {name: tensor + 1 for name, tensor in task.student.items()}
    refusal = evaluate(evaluate_task(study, student=other), workspace)
    assert isinstance(refusal, Refusal)
    assert refusal.code == "round_answered_otherwise"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tasks": (TaskKind.pretrain,)}, "task_not_allowed"),
        ({"public": (Public.updates, Public.counts)}, "metrics_not_public"),
        ({"min_subjects": HELD_OUT + 1}, "min_subjects"),
        ({"min_subjects_per_organ": HELD_OUT + 1}, "min_subjects"),
        ({"rounds_per_day": 1}, "rounds_per_day"),
    ],
)
def test_the_policy_decides(study: SmallStudy, workspace: Workspace, changes: dict[str, Any], code: str) -> None:
    if code == "rounds_per_day":
        evaluate(evaluate_task(study, round=2), workspace)
    strict = replace(workspace, policy=replace(workspace.policy, **changes))
    refusal = evaluate(evaluate_task(study), strict)
    assert isinstance(refusal, Refusal)
    assert refusal.code == code


def test_a_site_that_holds_nobody_out_says_so(study: SmallStudy) -> None:
    refusal = evaluate(evaluate_task(study), open_workspace({"site-folder": str(study.hospitals["neuro"])}))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "none_held_out"


def test_a_damaged_report_is_named(study: SmallStudy, workspace: Workspace) -> None:
    task = evaluate_task(study)
    evaluate(task, workspace)
    (path,) = (workspace.folder / "state" / "reports").rglob("report.json")
    path.write_text("{")
    with pytest.raises(DataError, match="restore the site's state"):
        evaluate(task, workspace)
