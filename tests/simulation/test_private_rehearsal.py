"""A rehearsal with privacy goes the whole way: charged by round, refused where a budget ends, and told in the report."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from pathlib import Path

import pytest
from opacus.accountants import RDPAccountant
from rich.console import Console

from panfm import recipes
from panfm.config import PrivacyMode
from panfm.export.model_folder import read_model
from panfm.groups import keep_groups
from panfm.models.build import initial_parameters
from panfm.reporting.record import (
    RoundFinished,
    RoundStarted,
    RunFinished,
    SiteAnswered,
    TrainerAudited,
    events_of,
    read_record,
)
from panfm.site.audit_chain import head_from
from panfm.site.identity import read_public_key
from panfm.site.ledger import read_ledger
from panfm.site.ledger_book import FIRST_COHORT, Fate
from panfm.site.policy_file import read_policy
from panfm.update import digest
from simulation.progress import Display
from simulation.rehearsal import rehearse

SETTINGS = (
    *("rounds=3", "privacy.noise_multiplier=4", "privacy.sampling_rate=0.5", "privacy.denominator=4"),
    *("cohort.epsilon=3", "+cohort.own_epsilon.neuro=1"),
    *("model.width=12", "model.heads=2", "model.depth=1", "model.adapter_width=2", "model.predictor_width=4"),
)
DELTA = 1e-5


def _epsilon(rounds: int) -> float:
    """By Opacus alone: so many rounds of two steps. Its fewer orders make it no smaller, and here hardly larger."""
    accountant = RDPAccountant()
    accountant.history = [(4.0, 0.5, 2 * rounds)]
    return float(accountant.get_epsilon(delta=DELTA))


def _rehearse(*settings: str) -> Path:
    """The run's folder."""
    with Display(Console(file=io.StringIO())) as display:
        return rehearse(recipes.load(["recipe=smoke", "name=private", *SETTINGS, *settings]), display).parent


@pytest.fixture(scope="module", params=["dp_adapters", pytest.param("dp_full", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds, of which one hospital can afford the first."""
    return _rehearse(f"runs={tmp_path_factory.mktemp('runs')}", f"privacy.mode={request.param}")


def test_the_run_goes_on_without_the_hospital_whose_budget_is_spent_and_says_so(run: Path) -> None:
    events = list(read_record(run / "record.jsonl"))
    outcomes = {(e.round, e.site): e.outcome for e in events_of(SiteAnswered, events)}
    others = {(number, site): "accepted" for number in (1, 2, 3) for site in ("abdominal", "cardiac")}
    assert outcomes == {**others, (1, "neuro"): "accepted", (2, "neuro"): "refused"}
    (refused,) = (e for e in events_of(SiteAnswered, events) if e.outcome == "refused")
    assert refused.is_budget_spent
    assert [e.passed_over for e in events_of(RoundStarted, events)] == [[], [], ["neuro"]]
    (end,) = events_of(RunFinished, events)
    assert (end.status, end.rounds_done) == ("complete", 3)
    brain = next(row for row in end.coverage if row["organ"] == "brain")
    assert (brain["sites"], brain["rounds"]) == (1, 1)
    assert ["brain" in e.unchanged_groups for e in events_of(RoundFinished, events)] == [False, True, True]
    page = (run / "report.html").read_text()
    assert 'id="privacy"' in page
    assert "in round 2" in page


def test_epsilon_on_record_is_that_of_the_rounds_charged(run: Path) -> None:
    for event in events_of(SiteAnswered, list(read_record(run / "record.jsonl"))):
        if event.outcome == "accepted":
            assert event.epsilon is not None
            assert event.epsilon == pytest.approx(_epsilon(event.round), rel=1e-2)
            assert (event.epsilon_delta, event.epsilon_budget) == (DELTA, 1.0 if event.site == "neuro" else 3.0)
            assert (event.num_subjects, event.metrics) == (1, {}), "nominal, and not told"


def test_each_hospitals_ledger_says_the_same_and_knows_the_heads_on_record(run: Path) -> None:
    answers = events_of(SiteAnswered, list(read_record(run / "record.jsonl")))
    for site, rounds in (("abdominal", 3), ("cardiac", 3), ("neuro", 1)):
        folder = run / "hospitals" / site
        told = [answer for answer in answers if answer.site == site and answer.ledger_head]
        book = read_ledger(folder, read_public_key(folder), [head_from(answer.ledger_head) for answer in told])
        assert [charge.fate for charge in book.charges] == [Fate.released] * rounds
        assert book.spent(FIRST_COHORT, DELTA) == told[-1].epsilon
        assert str(book.head) == told[-1].ledger_head


def test_what_the_mode_trains_has_moved_and_nothing_else(run: Path) -> None:
    model = read_model(run / "model")
    start = initial_parameters(model.recipe.model, model.recipe.organs, model.recipe.seed)
    still = digest(keep_groups(model.student, ["trunk"])) == digest(keep_groups(start, ["trunk"]))
    assert still == (model.recipe.privacy.mode is PrivacyMode.dp_adapters)
    for organ in ("brain", "heart", "liver"):
        assert digest(keep_groups(model.student, [organ])) != digest(keep_groups(start, [organ]))


def test_a_hospitals_policy_lets_nothing_of_training_leave_uncharged(run: Path) -> None:
    policy = read_policy(run / "hospitals" / "neuro")
    assert policy.privacy.budget is not None
    assert (policy.privacy.budget.epsilon, policy.privacy.budget.delta) == (1.0, DELTA)
    assert {word.name for word in policy.public} == {"metrics"}, "of subjects whom it holds out"


def test_what_the_trainer_is_shown_to_tell_stands_beside_what_is_claimed(run: Path) -> None:
    (audit,) = events_of(TrainerAudited, list(read_record(run / "record.jsonl")))
    assert 0 <= audit.at_least < audit.claimed < 3
    assert (audit.found, audit.canaries) == ([], 1000)
    assert "Claimed, and shown" in (run / "report.html").read_text()
