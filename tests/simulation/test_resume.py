"""A rehearsal that was left goes on: with its own settings, its own hospitals, and only what was not done yet."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from panfm import recipes
from panfm.config import Engine, RunConfig
from panfm.errors import ConfigError, LockedError
from panfm.export.model_folder import read_model
from panfm.lock import held
from panfm.reporting.record import Event, ProbeTable, RoundFinished, RunFinished, RunResumed, SiteAnswered
from server.run_record import RunRecord
from simulation import rehearsal
from simulation.hospitals import RehearsalCohort
from simulation.progress import Display
from simulation.rehearsal import rehearse
from simulation.resume import (
    COHORT_FILE,
    LOCK_FILE,
    keep_cohort,
    keep_settings,
    kept_cohort,
    settings_to_resume,
)
from tests.client.small_study import Finished, SmallStudy


class Death(BaseException):
    """Stands in for kill -9."""


def _rehearse(study: SmallStudy, *, resume: bool = False) -> None:
    config = study.config
    if resume:
        arguments = [f"resume={config.name}", f"runs={config.runs}"]
        config = settings_to_resume(recipes.load(arguments), arguments)
    with Display(Console(file=io.StringIO(), width=200)) as display:
        rehearse(config, display)


@pytest.fixture
def prepared(study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> SmallStudy:
    """A rehearsal whose hospitals are made in no time, and which is not probed."""
    cohort = RehearsalCohort(hospitals=study.hospitals, evaluation=())
    monkeypatch.setattr(rehearsal, "make_cohort", lambda *_arguments: cohort)
    monkeypatch.setattr(rehearsal, "_probe", _put_table)
    monkeypatch.setattr(rehearsal, "make_site_report", lambda _folder, _model: None)
    return replace(study, config=replace(study.config, runs=str(study.runs)))


def _put_table(_config: RunConfig, run_folder: Path, _cohort: RehearsalCohort) -> list[str]:
    RunRecord(run_folder).write(ProbeTable(title="probed", num_train=1, num_test=1, rows=[]))
    return []


def _die_after(last: Callable[[Event], bool], study: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunRecord.write

    def write(record: RunRecord, event: Event) -> None:
        real(record, event)
        if last(event):
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "write", write)
        with pytest.raises(Death):
            _rehearse(study)


def test_killed_rehearsal_ends_with_the_model_of_the_undisturbed_one(
    prepared: SmallStudy, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_answer(event: Event) -> bool:
        return isinstance(event, SiteAnswered) and (event.round, event.site) == (2, "cardiac")

    _die_after(second_answer, prepared, monkeypatch)
    monkeypatch.setattr(rehearsal, "make_cohort", lambda *_: pytest.fail("its hospitals are there"))
    _rehearse(prepared, resume=True)

    cards = [read_model(study.folder / "model").card for study in (prepared, finished[0])]
    assert cards[0].student_digest == cards[1].student_digest
    assert cards[0].teacher_digest == cards[1].teacher_digest
    assert [event.rounds_done for event in prepared.events(RunResumed)] == [1]
    assert [event.status for event in prepared.events(RunFinished)] == ["complete"]
    assert len(prepared.events(ProbeTable)) == 1
    assert "</html>" in (prepared.folder / "report.html").read_text()


def test_rehearsal_that_died_before_it_was_probed_is_only_probed(
    prepared: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    _die_after(lambda event: isinstance(event, ProbeTable), prepared, monkeypatch)
    record = prepared.folder / "record.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:-1]))  # as if it had not been written
    monkeypatch.setattr(rehearsal, "_conduct", lambda *_: pytest.fail("the study is over"))
    _rehearse(prepared, resume=True)
    assert len(prepared.events(ProbeTable)) == len(prepared.events(RunFinished)) == 1


def test_rehearsal_that_died_while_its_hospitals_were_made_makes_them_anew(
    prepared: SmallStudy, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_arguments: object) -> None:
        (prepared.folder / "hospitals" / "half").mkdir(parents=True)
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "make_cohort", die)
        with pytest.raises(Death):
            _rehearse(prepared)
    _rehearse(prepared, resume=True)
    assert not (prepared.folder / "hospitals" / "half").exists()
    assert prepared.events(RunResumed) == [], "the study itself begins"
    digests = [[event.model_digest for event in study.events(RoundFinished)] for study in (prepared, finished[0])]
    assert digests[0] == digests[1]


def test_hospitals_count_once_all_of_them_are_made(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    hospitals = {site: run / "hospitals" / site for site in ("north", "south")}
    for folder in (*hospitals.values(), run / "evaluation" / "test"):
        folder.mkdir(parents=True)
    cohort = RehearsalCohort(hospitals=hospitals, evaluation=(run / "evaluation" / "test",))
    keep_cohort(run, cohort)
    assert kept_cohort(run) == cohort
    moved = run.rename(tmp_path / "b")
    found = kept_cohort(moved)
    assert found is not None
    assert all(folder.is_dir() for folder in (*found.hospitals.values(), *found.evaluation))
    (moved / COHORT_FILE).unlink()
    assert kept_cohort(moved) is None
    assert [path.name for path in moved.iterdir()] == []


def test_settings_are_the_runs_own_but_for_the_machine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    keep_settings(tmp_path / "a", recipes.load(["recipe=smoke", "name=a", "seed=7", "rounds=9", f"runs={tmp_path}"]))
    arguments = ["resume=a", f"runs={tmp_path}", "workers=3", "engine=loopback"]
    found = settings_to_resume(recipes.load(arguments), arguments)
    assert (found.seed, found.rounds, found.recipe, found.resume, found.name) == (7, 9, "smoke", "a", "")
    assert (found.workers, found.engine, found.run_name) == (3, Engine.loopback, "a")
    plain = settings_to_resume(recipes.load(arguments[:2]), arguments[:2])
    assert (plain.workers, plain.engine) == (1, Engine.in_process)


@pytest.mark.parametrize("setting", ["rounds=10", "recipe=demo", "federation.min_sites=2", "seed=1"])
def test_setting_of_the_run_itself_cannot_be_given_anew(tmp_path: Path, setting: str) -> None:
    (tmp_path / "a").mkdir()
    keep_settings(tmp_path / "a", recipes.load(["recipe=smoke", "name=a"]))
    arguments = ["resume=a", f"runs={tmp_path}", setting]
    with pytest.raises(ConfigError, match=f"settings of the run itself; leave out {setting.partition('=')[0]}="):
        settings_to_resume(recipes.load(arguments), arguments)


def test_rehearsal_that_is_not_there(tmp_path: Path) -> None:
    arguments = ["resume=absent", f"runs={tmp_path}"]
    with pytest.raises(ConfigError, match=r"no rehearsal called absent in .*; check resume= and runs="):
        settings_to_resume(recipes.load(arguments), arguments)


@pytest.mark.parametrize("beside", ["name=b", "init_from=/model"])
def test_resume_stands_alone(beside: str) -> None:
    with pytest.raises(ConfigError, match="leave out name= and init_from="):
        recipes.load(["resume=a", beside])


def test_two_rehearsals_of_one_name_do_not_meet(prepared: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _die_after(lambda event: isinstance(event, RoundFinished), prepared, monkeypatch)
    before = (prepared.folder / "record.jsonl").read_bytes()
    with held(prepared.folder / LOCK_FILE), pytest.raises(LockedError, match="is being written by process"):
        _rehearse(prepared, resume=True)
    assert (prepared.folder / "record.jsonl").read_bytes() == before


def test_new_rehearsal_of_the_name_is_told_how_to_go_on(prepared: SmallStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _die_after(lambda event: isinstance(event, RoundFinished), prepared, monkeypatch)
    with pytest.raises(ConfigError, match=f"resume={prepared.config.name}"):
        _rehearse(prepared)
