"""Rounds with privacy at the coordinator: parts of groups, witnesses of ledgers, and sites whose budget runs out."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from panfm.errors import RunError
from panfm.export.model_folder import read_model
from panfm.models.build import initial_parameters
from panfm.protocol import Refusal, TrainTask
from panfm.reporting.record import AnswersAccepted, RoundFinished, RoundStarted, RunFinished, SiteAnswered
from panfm.update import digest
from tests.server.seeded_study import Death, SeededStudy, dying, seeded_study

PRIVATE = ("privacy.mode=dp_adapters", "rounds=4", "federation.server.optimiser=fedavg")
SPENT = "budget_spent: the site has spent the privacy budget of its policy"


def _spent(task: TrainTask) -> Refusal:
    code, _, reason = SPENT.partition(": ")
    return Refusal(run=task.run, round=task.round, site=task.site, code=code, reason=reason)


def _begin(runs: Path, *overrides: str) -> SeededStudy:
    """Four rounds, in the second of which the budget of one site is spent."""
    return seeded_study(runs, *PRIVATE, *overrides, abdominal_2=_spent, abdominal_3=_spent, abdominal_4=_spent)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> SeededStudy:
    study = _begin(tmp_path_factory.mktemp("private"))
    study.conduct()
    return study


def test_a_site_without_budget_is_named_once_left_in_peace_and_the_run_goes_on(private: SeededStudy) -> None:
    said = {(e.round, e.site): (e.outcome, e.reason) for e in private.events(SiteAnswered) if e.outcome != "accepted"}
    assert said == {(2, "abdominal"): ("refused", SPENT)}
    assert [number for site, number in private.asked if site == "abdominal"] == [1, 2]
    assert [event.passed_over for event in private.events(RoundStarted)] == [[], [], ["abdominal"], ["abdominal"]]
    averaged = [sorted(event.weights["heads"]) for event in private.events(RoundFinished)]
    assert averaged == [["abdominal", "cardiac", "neuro"], *[["cardiac", "neuro"]] * 3]
    (end,) = private.events(RunFinished)
    assert (end.status, end.rounds_done) == ("complete", 4)
    liver = next(row for row in end.coverage if row["organ"] == "liver")
    assert (liver["offered_by"], liver["sites"], liver["fewest"]) == (2, 2, 2)


def test_what_is_frozen_stays_bit_for_bit_student_and_teacher(private: SeededStudy) -> None:
    model, config = read_model(private.folder / "model"), private.config
    start = initial_parameters(config.model, config.organs, config.seed)
    moved = {name for name in start if digest({name: model.student[name]}) != digest({name: start[name]})}
    assert moved == {name for name in start if ".adapters." in name or "_predictor." in name}
    still = {name: tensor for name, tensor in start.items() if name not in moved}
    assert digest({name: model.teacher[name] for name in still}) == digest(still)
    for event in private.events(RoundFinished):
        assert event.unchanged_groups == {"trunk": "privacy.mode=dp_adapters leaves it as it is"}


def test_what_each_site_has_spent_is_on_record_with_the_head_of_its_ledger(private: SeededStudy) -> None:
    """The head of the round before comes back to the site as its witness, and so into the next head of these sites."""
    head = ""
    for event in (event for event in private.events(SiteAnswered) if event.site == "cardiac"):
        number = event.round
        assert event.epsilon == pytest.approx(0.1 * number)
        assert (event.epsilon_delta, event.epsilon_budget) == (1e-5, 3.0)
        head = f"{hashlib.sha256(f'cardiac {number} {head}'.encode()).hexdigest()}:{2 * number}"
        assert event.ledger_head == head
    refused = next(event for event in private.events(SiteAnswered) if event.outcome == "refused")
    assert (refused.epsilon, refused.epsilon_budget, refused.ledger_head) == (None, None, "")


def test_what_was_spent_for_an_answer_that_does_not_count_is_on_record_too(tmp_path: Path) -> None:
    study = seeded_study(tmp_path, *PRIVATE, "rounds=1", neuro_1=lambda _task: {"num_steps": 1})
    with pytest.raises(RunError, match="nobody's training of brain counted"):
        study.conduct()
    (answer,) = (event for event in study.events(SiteAnswered) if event.site == "neuro")
    assert answer.reason.startswith("did 1 steps, expected 2: with privacy every step counts")
    assert (answer.outcome, answer.epsilon, answer.num_subjects) == ("left_out", 0.1, 0)
    assert answer.ledger_head


def test_an_update_of_whole_groups_is_left_out_with_privacy(tmp_path: Path) -> None:
    """It would hold what was never noised."""
    study = seeded_study(tmp_path, *PRIVATE, "rounds=1", neuro_1=lambda task: {"deltas": dict(task.student)})
    with pytest.raises(RunError):
        study.conduct()
    (answer,) = (event for event in study.events(SiteAnswered) if event.site == "neuro")
    assert "against what privacy.mode trains there" in answer.reason


def test_a_run_that_can_count_no_round_any_more_ends_and_charges_nobody(tmp_path: Path) -> None:
    study = _begin(tmp_path, "federation.min_sites=3")
    with pytest.raises(RunError, match="the privacy budget of abdominal is spent, so 2 sites are left for round 3"):
        study.conduct()
    assert {number for _, number in study.asked} == {1, 2}
    assert [len(event.updates) for event in study.events(AnswersAccepted)] == [3, 0]
    (end,) = study.events(RunFinished)
    assert (end.status, end.rounds_done, end.model) == ("incomplete", 2, "model")
    assert "panfm privacy plan" in end.reason


@pytest.mark.parametrize("seed", range(3))
def test_a_coordinator_that_dies_asks_with_the_same_witnesses(
    tmp_path: Path, private: SeededStudy, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The site without budget, which joins anew, is asked once more, and says so once more."""
    study = _begin(tmp_path)
    with dying(monkeypatch, random.Random(seed).randrange(60, 250)), pytest.raises(Death):
        study.conduct()
    study.go_on()
    one, other = ({e.round: e.model_digest for e in s.events(RoundFinished)} for s in (study, private))
    assert one == other
    heads = [
        {(e.round, e.site, e.ledger_head) for e in s.events(SiteAnswered) if e.ledger_head} for s in (study, private)
    ]
    assert heads[0] == heads[1]
    refusals = [event.site for event in study.events(SiteAnswered) if event.outcome == "refused"]
    assert refusals in (["abdominal"], ["abdominal"] * 2)
