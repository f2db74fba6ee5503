"""Whole studies under seeded faults: no crash of the coordinator, a finite model, and each fault named in the record.

The fast slice waits in a clock of its own, so that a lost answer costs no time; the slow hundred plans run as a person would run
them, in worker processes that are killed and starved of memory.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.app import app as client_app
from panfm import recipes
from panfm.config import NEEDS_PROCESS, FaultConfig, FaultKind
from panfm.errors import RunError
from panfm.export.model_folder import read_model
from panfm.reporting.record import FaultsPlanned, RoundStarted, RunFinished, SiteAnswered
from server.app import app as server_app
from simulation.faults import planned_fault
from simulation.faulty_grid import FaultyGrid
from simulation.local_grid import LocalGrid, answer_as_site, new_run_id, run_in_process
from simulation.site_workers import SiteWorkers
from tests.client.small_study import SmallStudy, app_that_trains, copy_study, quick_train

ON_THE_WAY = [kind for kind in FaultKind if kind not in NEEDS_PROCESS]

SAID: dict[FaultKind, tuple[str, str]] = {
    FaultKind.drop: ("late", "no answer within"),
    FaultKind.slow: ("late", "no answer within"),
    FaultKind.crash: ("failed", "ended without an answer"),
    FaultKind.exception: ("failed", "ended without an answer"),
    FaultKind.not_a_number: ("left_out", "not finite"),
    FaultKind.wrong_shape: ("left_out", "has shape"),
    FaultKind.missing_key: ("left_out", "is incomplete: lacks"),
    FaultKind.extra_key: ("left_out", "which the site was not sent"),
    FaultKind.stale_round: ("left_out", "answers round"),
    FaultKind.replay: ("left_out", "answers round"),
    FaultKind.huge_norm: ("left_out", "has L2 norm"),
    FaultKind.sign_flip: ("accepted", ""),
    FaultKind.out_of_memory: ("failed", ""),
}
"""What the coordinator makes of each kind: the outcome, and words of the reason."""


@pytest.fixture
def free_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every pause pass at once, on all clocks of this process alike."""
    passed_s = 0.0
    monotonic = time.monotonic

    def sleep(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed_s)


def _with_faults(study: SmallStudy, *overrides: str, **faults: Any) -> SmallStudy:
    changed = study.with_settings("federation.round_deadline_s=600", *overrides)
    return replace(changed, config=replace(changed.config, faults=FaultConfig(**faults)))


def _conduct(study: SmallStudy, workers: SiteWorkers | None = None, quick: bool = False) -> None:
    """As `run_in_process` does, but for the app that trains and for who owns the workers."""
    app = app_that_trains(quick_train) if quick else client_app
    folders = [{"site-folder": str(folder)} for folder in study.hospitals.values()]
    composed = {"composed": recipes.to_yaml(study.config)}
    local = LocalGrid(app, folders, composed, {"runs-dir": str(study.runs)}, workers)
    grid = FaultyGrid(local, study.config.faults, dict(zip(local.get_node_ids(), study.hospitals, strict=True)))
    server_app(grid, local.server_context)


def _first_words(study: SmallStudy) -> dict[tuple[int, str], SiteAnswered]:
    """(round, site) -> what the record says first of it; an answer that is overdue is named again."""
    said: dict[tuple[int, str], SiteAnswered] = {}
    for event in study.events(SiteAnswered):
        said.setdefault((event.round, event.site), event)
    return said


def _check_end(study: SmallStudy, rounds: int) -> None:
    """An honest end, and a model of finite numbers."""
    (end,) = study.events(RunFinished)
    assert end.status in ("complete", "incomplete")
    assert end.rounds_done == rounds
    assert "the coordinator's program failed" not in end.reason
    model = read_model(study.folder / "model")
    for tensor in (*model.student.values(), *model.teacher.values()):
        assert bool(tensor.isfinite().all())


def _planned(study: SmallStudy) -> dict[tuple[int, str], FaultKind]:
    config = study.config.faults
    asked = [(event.round, site) for event in study.events(RoundStarted) for site in event.sites]
    return {place: fault.kind for place in asked if (fault := planned_fault(config, place[1], place[0]))}


@pytest.mark.usefixtures("free_waits")
def test_each_fault_is_named_and_the_others_count(study: SmallStudy) -> None:
    study = _with_faults(study, "rounds=7", rate=0.7, seed=8, slow_s=1000.0, kinds=ON_THE_WAY)
    with contextlib.suppress(RunError):  # incomplete, where a round had no answer left
        _conduct(study, quick=True)
    _check_end(study, rounds=7)
    said, planned = _first_words(study), _planned(study)
    assert len(said) == 21
    assert set(planned.values()) == set(ON_THE_WAY), "of this seed, every kind"
    for place, event in said.items():
        outcome, words = SAID[planned[place]] if place in planned else ("accepted", "")
        assert (event.outcome, words in event.reason) == (outcome, True), (planned.get(place), event)


@pytest.mark.usefixtures("free_waits")
def test_a_slow_answer_within_the_deadline_and_a_program_that_fails_once_count(study: SmallStudy) -> None:
    kinds = [FaultKind.slow, FaultKind.exception]
    study = _with_faults(study, "rounds=3", rate=1.0, slow_s=100.0, kinds=kinds, lasting=False)
    _conduct(study, quick=True)
    assert set(_planned(study).values()) == set(kinds)
    assert {event.outcome for event in study.events(SiteAnswered)} == {"accepted"}
    slow = [place for place, kind in _planned(study).items() if kind is FaultKind.slow]
    assert all(_first_words(study)[place].seconds >= 100.0 for place in slow)


@pytest.mark.usefixtures("free_waits")
def test_plan_stands_in_the_record_of_the_real_apps(study: SmallStudy) -> None:
    study = _with_faults(study, "rounds=2", rate=0.4, seed=3, kinds=[FaultKind.drop, FaultKind.sign_flip])
    with contextlib.suppress(RunError):
        run_in_process(study.config, study.runs, study.hospitals)
    (told,) = study.events(FaultsPlanned)
    assert told.seed == 3
    named = {(fault["round"], fault["site"]): FaultKind[fault["kind"]] for fault in told.faults}
    assert named == _planned(study)
    assert named


# ---- a hundred plans ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers() -> Iterator[SiteWorkers]:
    with SiteWorkers(answer_as_site, 2, new_run_id()) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_a_random_plan_with_killed_and_starved_processes(
    hospitals_template: Path, tmp_path: Path, workers: SiteWorkers, seed: int
) -> None:
    study = copy_study(hospitals_template, tmp_path)
    deadline = "federation.round_deadline_s=4"
    study = _with_faults(study, "rounds=10", "workers=2", deadline, rate=0.3, seed=seed, slow_s=1.0)
    with contextlib.suppress(RunError):
        _conduct(study, workers)
    _check_end(study, rounds=10)
    said, planned = _first_words(study), _planned(study)
    outcomes: Counter[str] = Counter()
    for place, kind in planned.items():
        outcomes[said[place].outcome] += 1
        if kind not in (FaultKind.sign_flip, FaultKind.slow):  # those are well-formed, and in time
            assert said[place].outcome != "accepted", (kind, said[place])
            assert said[place].reason
        if kind not in (FaultKind.out_of_memory, FaultKind.slow) and said[place].outcome != "late":  # a busy machine
            outcome, words = SAID[kind]
            assert (said[place].outcome, words in said[place].reason) == (outcome, True), (kind, said[place])
    assert outcomes.total() == len(planned)
