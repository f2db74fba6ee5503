"""A run that is killed anywhere and resumed ends with the very bits of the run that nothing happened to.

Here a process dies by an exception at a durable step; tests/simulation/test_killed.py kills real processes.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panfm.errors import CheckpointError, ConfigError, DataError, LockedError, RunError
from panfm.export.model_folder import read_model
from panfm.lock import held
from panfm.protocol import TrainTask
from panfm.reporting.history import read_history
from panfm.reporting.record import (
    AnswersAccepted,
    Event,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteAnswered,
    SiteEvaluated,
    read_record,
)
from server.checkpoint import newest_checkpoint
from server.run_folder import LOCK_FILE, RECORD_FILE
from server.run_record import RunRecord
from tests.client.small_study import HELD
from tests.server.seeded_study import Death, SeededStudy, dying, seeded_study


def _fails(_task: TrainTask) -> dict[str, object]:
    raise OSError("no space left")


def _nan(task: TrainTask) -> dict[str, object]:
    return {"deltas": {name: torch.full_like(tensor, math.nan) for name, tensor in task.student.items()}}


def _begin(runs: Path, *overrides: str) -> SeededStudy:
    """Two rounds, in which one site fails once and another sends what is no number."""
    return seeded_study(runs, *overrides, neuro_1=_fails, abdominal_2=_nan)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> SeededStudy:
    study = _begin(tmp_path_factory.mktemp("undisturbed"))
    study.conduct()
    return study


@pytest.fixture(scope="module")
def num_steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Durable steps of a run to which nothing happens."""
    study = _begin(tmp_path_factory.mktemp("counted"))
    with pytest.MonkeyPatch.context() as patch, dying(patch) as steps:
        study.conduct()
    return steps.done


def _die(study: SeededStudy, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    with dying(monkeypatch, last), pytest.raises(Death):
        study.conduct()


def _die_after(last: Callable[[Event], bool], study: SeededStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die as soon as a certain event is on record."""
    real = RunRecord.write

    def write(record: RunRecord, event: Event) -> None:
        real(record, event)
        if last(event):
            raise Death

    with monkeypatch.context() as patch:
        patch.setattr(RunRecord, "write", write)
        with pytest.raises(Death):
            study.conduct()


def _digests(study: SeededStudy) -> list[str]:
    """Of the model after each round, as on record; the later word where a round was averaged twice."""
    return list({event.round: event.model_digest for event in study.events(RoundFinished)}.values())


def _same_end(study: SeededStudy, undisturbed: SeededStudy) -> None:
    assert _digests(study) == _digests(undisturbed)
    exported, expected = (read_model(s.folder / "model").card for s in (study, undisturbed))
    assert exported.student_digest == expected.student_digest
    assert exported.teacher_digest == expected.teacher_digest
    outcomes = [{(e.round, e.site): e.outcome for e in s.events(SiteAnswered)} for s in (study, undisturbed)]
    assert outcomes[0] == outcomes[1]
    assert study.events(RunFinished)[-1].status == undisturbed.events(RunFinished)[-1].status == "complete"


def _killed_and_resumed(runs: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    study = _begin(runs)
    _die(study, monkeypatch, last)
    if not study.is_over():
        study.go_on()
    _same_end(study, undisturbed)


def test_a_run_has_many_durable_steps(num_steps: int) -> None:
    assert num_steps > 150


@pytest.mark.parametrize("place", [place / 7 + 0.03 for place in range(7)], ids=lambda place: f"{place:.0%}")
def test_killed_at_a_durable_step_and_resumed(
    tmp_path: Path, undisturbed: SeededStudy, num_steps: int, monkeypatch: pytest.MonkeyPatch, place: float
) -> None:
    _killed_and_resumed(tmp_path, undisturbed, monkeypatch, round(place * num_steps))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_killed_at_every_durable_step_and_resumed(
    tmp_path: Path, undisturbed: SeededStudy, num_steps: int, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    for last in range(part, num_steps, 8):
        _killed_and_resumed(tmp_path / str(last), undisturbed, monkeypatch, last)
        shutil.rmtree(tmp_path / str(last))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_killed_again_and_again(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A process that goes on dies, too, also while it takes over."""
    study, draw = _begin(tmp_path), random.Random(seed)
    deaths = 0
    while not study.is_over():
        with dying(monkeypatch, draw.randrange(30, 90)), contextlib.suppress(Death):
            study.go_on()
        deaths += 1
    assert deaths >= 3
    _same_end(study, undisturbed)


# ---- what a resumed run does, step by step --------------------------------------------------------------------------


def test_site_on_whose_answer_something_was_said_is_not_asked_again(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _die_after(
        lambda event: isinstance(event, SiteAnswered) and (event.round, event.site) == (2, "cardiac"),
        study,
        monkeypatch,
    )
    asked_before = [site for site, number in study.asked if number == 2]
    study.asked.clear()
    study.go_on()

    judged = {"abdominal", "cardiac"}
    assert set(asked_before) == judged
    assert study.asked == [("neuro", 2)]
    assert [e.sites for e in study.events(RoundStarted)] == [sorted(HELD)] * 2, "the round did not begin again"
    assert len([e for e in study.events(SiteAnswered) if e.round == 2]) == 3
    _same_end(study, undisturbed)


def _killed_once_the_set_is_closed(study: SeededStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    _die_after(lambda event: isinstance(event, AnswersAccepted) and event.round == 2, study, monkeypatch)


def test_closed_set_is_averaged_from_the_spool_without_asking_anybody(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _killed_once_the_set_is_closed(study, monkeypatch)
    study.asked.clear()
    study.go_on()
    assert study.asked == []
    assert len(study.events(AnswersAccepted)) == 2
    _same_end(study, undisturbed)


def test_answer_that_the_spool_lost_is_asked_for_again(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _killed_once_the_set_is_closed(study, monkeypatch)
    (kept,) = study.folder.glob("spool/round-0002/neuro/raw.bin")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    study.asked.clear()
    study.go_on()
    assert study.asked == [("neuro", 2)]
    _same_end(study, undisturbed)


def test_answer_that_is_lost_for_good_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its site is gone, too: the round counts the others, and does not pretend."""
    study = _begin(tmp_path)
    _killed_once_the_set_is_closed(study, monkeypatch)
    shutil.rmtree(study.folder / "spool" / "round-0002" / "neuro")
    with pytest.raises(RunError, match="nobody's training of brain counted"):
        study.conduct(resume=True, sites=["abdominal", "cardiac"])
    answer = [e for e in study.events(SiteAnswered) if (e.round, e.site) == (2, "neuro")][-1]
    assert (answer.outcome, answer.reason) == ("late", "it was not there when the run went on")
    assert set(study.events(AnswersAccepted)[-1].updates) == {"cardiac"}
    assert study.events(RunFinished)[-1].status == "incomplete"


def test_site_that_was_asked_and_does_not_come_back_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _begin(tmp_path)
    _die_after(lambda event: isinstance(event, RoundStarted) and event.round == 2, study, monkeypatch)
    with pytest.raises(RunError):
        study.conduct(resume=True, sites=["abdominal", "cardiac"])
    answers = {e.site: e for e in study.events(SiteAnswered) if e.round == 2}
    assert answers["neuro"].outcome == "late"
    assert answers["cardiac"].outcome == "accepted"


def test_record_says_that_and_from_where_the_run_went_on(
    tmp_path: Path, undisturbed: SeededStudy, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _die(study, monkeypatch, num_steps * 3 // 4)
    study.go_on()
    (start,), (resumed,) = study.events(RunStarted), study.events(RunResumed)
    assert (resumed.run, resumed.rounds_done, resumed.note) == (start.run, 1, "")
    history = read_history(study.folder)
    assert history.finish is not None
    assert history.finish.status == "complete"
    assert sorted(history.averages) == [1, 2]
    assert read_model(study.folder / "model").card.run == start.run


def test_another_torch_is_named(tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _begin(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("server.study.torch.__version__", "1.0.0")
        _die(study, monkeypatch, num_steps * 3 // 4)
    study.go_on()
    (resumed,) = study.events(RunResumed)
    assert resumed.note == f"torch was 1.0.0 and is {torch.__version__}: bits may differ"


@pytest.mark.parametrize("spooled", [True, False], ids=["answers in the spool", "answers asked for again"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch, spooled: bool
) -> None:
    """The round in between is averaged again, from the same answers."""
    study = _begin(tmp_path)
    _die_after(lambda event: isinstance(event, RoundFinished) and event.round == 2, study, monkeypatch)
    (study.folder / "checkpoints" / "round-0002" / "teacher.safetensors").write_bytes(b"nothing")
    if not spooled:
        shutil.rmtree(study.folder / "spool")
    study.asked.clear()
    study.go_on()
    (resumed,) = study.events(RunResumed)
    assert resumed.rounds_done == 1
    assert "round-0002" in resumed.note
    assert study.asked == ([] if spooled else [("cardiac", 2), ("neuro", 2)])
    _same_end(study, undisturbed)


def test_nothing_whole_to_go_on_from_ends_before_anything_is_written(
    tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _die(study, monkeypatch, num_steps * 3 // 4)
    record = (study.folder / RECORD_FILE).read_bytes()
    for place in (study.folder / "checkpoints").glob("round-*"):
        (place / "card.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be gone on from"):
        study.go_on()
    assert record.startswith((study.folder / RECORD_FILE).read_bytes())


def test_record_that_was_cut_does_not_pass(tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _begin(tmp_path)
    _die(study, monkeypatch, num_steps * 3 // 4)
    lines = (study.folder / RECORD_FILE).read_bytes().splitlines(keepends=True)
    (study.folder / RECORD_FILE).write_bytes(b"".join(line for line in lines if b'"neuro", "outcome"' not in line))
    with pytest.raises(DataError, match=r"lines were cut or changed since; restore record\.jsonl from a copy"):
        study.go_on()


def test_run_that_is_over_is_not_resumed(undisturbed: SeededStudy) -> None:
    before = (undisturbed.folder / RECORD_FILE).read_bytes()
    with pytest.raises(ConfigError, match=r"is complete: all its 2 rounds are done, and nothing is left"):
        undisturbed.conduct(resume=True)
    assert (undisturbed.folder / RECORD_FILE).read_bytes() == before


def test_two_coordinators_never_write_one_run(tmp_path: Path, undisturbed: SeededStudy, num_steps: int) -> None:
    study = _begin(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        _die(study, patch, num_steps * 3 // 4)
    before = (study.folder / RECORD_FILE).read_bytes()
    with held(study.folder / LOCK_FILE), pytest.raises(LockedError, match="is being written by process"):
        study.go_on()
    assert (study.folder / RECORD_FILE).read_bytes() == before
    study.go_on()
    _same_end(study, undisturbed)


def test_stopped_run_goes_on(tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_task: TrainTask) -> dict[str, object]:
        raise KeyboardInterrupt

    study = _begin(tmp_path)
    stopped = replace(study, faults={**study.faults, ("cardiac", 2): stop})
    with pytest.raises(KeyboardInterrupt):
        stopped.conduct()
    assert study.events(RunFinished)[-1].status == "stopped"
    study.go_on()
    _same_end(study, undisturbed)


def test_what_a_run_fell_short_of_before_its_death_is_not_forgotten(
    tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few sites in the first round; the process that goes on does not call the run complete."""
    study = _begin(tmp_path, "federation.min_sites=3")
    with pytest.raises(RunError, match="nobody's training counted in any round"):
        study.conduct()
    again = _begin(tmp_path / "again", "federation.min_sites=3")
    _die(again, monkeypatch, num_steps * 3 // 4)
    assert again.events(RunFinished) == []
    with pytest.raises(RunError, match="nobody's training counted in any round"):
        again.go_on()
    assert again.events(RunFinished)[-1].reason == study.events(RunFinished)[-1].reason


def test_collapse_is_counted_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.rounds.collapse_reason", lambda _metrics, _objective: "its features collapsed")
    study = seeded_study(tmp_path, "rounds=5")
    _die_after(lambda event: isinstance(event, RoundFinished), study, monkeypatch)
    with pytest.raises(RunError, match="collapsed in 2 rounds"):
        study.go_on()
    assert study.events(RunFinished)[-1].rounds_done == 2


def test_server_state_is_part_of_what_is_taken_over(
    tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _begin(tmp_path)
    _die(study, monkeypatch, num_steps * 3 // 4)
    start = study.events(RunStarted)[0]
    moments = newest_checkpoint(study.folder, start.run).checkpoint.state.moments
    assert any(name.startswith("second/") and tensor.abs().max() > 0 for name, tensor in moments.items())


def test_run_that_never_began_cannot_be_resumed(tmp_path: Path) -> None:
    study = _begin(tmp_path)
    with pytest.raises(ConfigError, match="no run called seeded"):
        study.conduct(resume=True)
    assert not study.folder.exists()
    RunRecord(study.folder).write(RunFinished(status="incomplete", reason="", rounds_done=0, seconds=0.0))
    with pytest.raises(ConfigError, match="never began, so it cannot be resumed"):
        study.conduct(resume=True)


def test_half_a_first_line_is_no_run_yet(tmp_path: Path, undisturbed: SeededStudy) -> None:
    study = _begin(tmp_path)
    study.folder.mkdir(parents=True)
    (study.folder / RECORD_FILE).write_text('{"schema": 1, "event": "run_st')
    study.go_on()
    _same_end(study, undisturbed)
    assert next(iter(read_record(study.folder / RECORD_FILE))) == study.events(RunStarted)[0]


# ---- evaluations ------------------------------------------------------------------------------------------------------


def test_evaluations_change_no_bit_of_the_model(tmp_path: Path, undisturbed: SeededStudy) -> None:
    study = _begin(tmp_path, "federation.evaluation.every=1")
    study.conduct()
    assert sorted(study.evaluated) == [(site, number) for site in sorted(HELD) for number in (1, 2)]
    assert [event.round for event in study.events(RoundEvaluated)] == [1, 2]
    _same_end(study, undisturbed)


@pytest.mark.parametrize("number", [1, 2])
def test_evaluation_that_was_interrupted_is_done_again(
    tmp_path: Path, undisturbed: SeededStudy, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also the last one, after which no round comes."""
    study = _begin(tmp_path, "federation.evaluation.every=1")
    _die_after(lambda event: isinstance(event, SiteEvaluated) and event.round == number, study, monkeypatch)
    study.evaluated.clear()
    study.go_on()
    assert {one for _, one in study.evaluated} == set(range(number, 3))
    evaluated = study.events(RoundEvaluated)
    assert [(event.round, event.sites) for event in evaluated] == [(1, sorted(HELD)), (2, sorted(HELD))]
    assert evaluated[-1].best_round is not None
    assert (study.folder / "best" / f"round-{evaluated[-1].best_round:04d}").is_dir()
    _same_end(study, undisturbed)
