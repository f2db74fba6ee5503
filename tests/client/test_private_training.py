"""Training with privacy at a site: charged before a subject is looked at, once for each answer, and never told otherwise."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant

from client import private_training
from client.participation import take_part
from client.private_training import MOST_ATTEMPTS, PrivateTrainingFailed
from client.progress import STEPS
from client.workspace import Workspace, open_workspace
from panfm import recipes
from panfm.config import PrivacyMode
from panfm.errors import AuditError, CheckpointError, ProtocolError
from panfm.pretrain import private_round
from panfm.pretrain.private_round import PrivateRound
from panfm.pretrain.private_scope import round_cost, trained_names
from panfm.privacy import clipping
from panfm.protocol import Answer, Refusal, SiteUpdate, TrainTask
from panfm.signing import public_hex
from panfm.site.answers import AnswerStore
from panfm.site.audit_log import STATE
from panfm.site.egress import release, released_error
from panfm.site.identity import SiteIdentity
from panfm.site.ledger import Ledger, has_ledger, read_ledger
from panfm.site.ledger_book import Book, Fate
from panfm.site.policy import Bounds, PrivacyDemand, Public
from panfm.site.policy import PrivacyMode as Demanded
from panfm.wire.parcels import unpack_tensors
from tests.client.small_study import SmallStudy, signed_task

DELTA = 1e-5
DP = PrivacyDemand(mode=Demanded.dp, epsilon=10.0, delta=DELTA)
NOISE, RATE = 4.0, 0.5


PRIVATE = (f"privacy.noise_multiplier={NOISE}", f"privacy.sampling_rate={RATE}", "rounds=9")


@pytest.fixture
def study(study: SmallStudy) -> SmallStudy:
    """The small study, with privacy."""
    return study.with_settings(*PRIVATE, "privacy.mode=dp_adapters")


def at(study: SmallStudy, demand: PrivacyDemand = DP, public: tuple[Public, ...] = ()) -> Workspace:
    """The hospital as after a restart, under another policy than it has."""
    workspace = open_workspace({"site-folder": str(study.hospitals["neuro"])})
    return replace(workspace, policy=replace(workspace.policy, privacy=demand, public=public, nominal_subjects=50))


@pytest.fixture
def workspace(study: SmallStudy) -> Workspace:
    return at(study)


def book_of(workspace: Workspace) -> Book:
    return read_ledger(workspace.folder, public_hex(SiteIdentity.open(workspace.folder).signing_key))


def fates(workspace: Workspace) -> list[Fate]:
    return [charge.fate for charge in book_of(workspace).charges] if has_ledger(workspace.folder) else []


def epsilon_of(rounds: int) -> float:
    """Opacus' own accountant, asked for the rounds that were charged."""
    accountant = RDPAccountant()
    accountant.history = [(NOISE, RATE, 2 * rounds)]
    return float(accountant.get_epsilon(delta=DELTA))


def answered(task: TrainTask, workspace: Workspace) -> SiteUpdate:
    answer = take_part(task, workspace)
    assert isinstance(answer, SiteUpdate)
    return answer


def refused(answer: Answer) -> str:
    assert isinstance(answer, Refusal)
    return answer.code


def files_of(workspace: Workspace) -> dict[str, bytes]:
    """All that the answers are stored in."""
    folder = workspace.folder / STATE / "answers"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what is told ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [PrivacyMode.dp_adapters, PrivacyMode.dp_full])
def test_answer_tells_what_is_public_and_noised_and_nothing_else(study: SmallStudy, mode: PrivacyMode) -> None:
    study = study.with_settings(*PRIVATE, f"privacy.mode={mode.value}")
    task, recipe, workspace = signed_task(study, "neuro"), recipes.recipe_of(study.config), at(study)
    answer = answered(task, workspace)
    deltas = unpack_tensors(workspace.answers.parcels(answer))
    assert sorted(deltas) == trained_names(task.student, mode, recipe, ("brain", "heart"))
    assert all(float(delta.abs().max()) > 0 for delta in deltas.values()), "noise is on every one of them"
    assert (answer.num_subjects, answer.organ_subjects) == (50, {"brain": 50, "heart": 50})
    assert (answer.num_steps, answer.metrics) == (2, None)
    assert release(answer, workspace.policy, task, workspace.answers.parcels(answer)).answer == answer


def test_answer_tells_what_is_spent_and_the_head_of_the_ledger(study: SmallStudy, workspace: Workspace) -> None:
    for number in (1, 2):
        answer = answered(signed_task(study, "neuro", round=number), workspace)
        book = book_of(workspace)
        assert answer.privacy is not None
        assert answer.privacy.epsilon == pytest.approx(epsilon_of(number), rel=1e-6)
        assert (answer.privacy.delta, answer.privacy.budget) == (DELTA, 10.0)
        assert answer.privacy.ledger_head == str(book.head)
        assert [charge.fate for charge in book.charges] == [Fate.released] * number


def test_everybody_who_may_be_sampled_is_charged(study: SmallStudy, workspace: Workspace) -> None:
    recipe = recipes.recipe_of(study.config)
    answered(signed_task(study, "neuro"), workspace)
    (charge,) = book_of(workspace).charges
    assert charge.steps == round_cost(recipe)
    everybody = frozenset[str]().union(*workspace.subjects().values())
    assert book_of(workspace).roll.subjects == len(everybody) == 8
    assert workspace.spent_epsilon() == pytest.approx(epsilon_of(1), rel=1e-6)


def test_steps_are_shown_at_the_site_and_tell_no_more_than_how_far_it_is(
    study: SmallStudy, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, STEPS):
        answer = answered(signed_task(study, "neuro"), workspace)
    shown = [record for record in caplog.records if record.name == STEPS]
    assert [record.getMessage() for record in shown] == ["round 1 step 1 of 2", "round 1 step 2 of 2"]
    told = [
        {name: record.__dict__[name] for name in ("site", "round", "step", "num_steps", "loss")} for record in shown
    ]
    assert told == [{"site": "neuro", "round": 1, "step": n, "num_steps": 2, "loss": None} for n in (1, 2)]
    sent = release(answer, workspace.policy, signed_task(study, "neuro"), workspace.answers.parcels(answer))
    assert sent.answer == answer


def test_watching_the_steps_changes_nothing_that_leaves(study: SmallStudy, caplog: pytest.LogCaptureFixture) -> None:
    """Samples, noise and the round's secret are held still, so that two rounds can be compared to the bit."""
    found = [
        _held_still(study, run, level, caplog) for run, level in (("small-1", logging.ERROR), ("other-2", logging.INFO))
    ]
    assert len([record for record in caplog.records if record.name == STEPS]) == 2
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(bool(delta.any()) for delta in found[0].values())


def _held_still(study: SmallStudy, run: str, level: int, caplog: pytest.LogCaptureFixture) -> dict[str, torch.Tensor]:
    workspace = at(study)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(level, STEPS):
        patch.setattr(private_round, "poisson_sample", lambda size, rate: np.arange(0, size, 2))
        patch.setattr(private_round, "os", SimpleNamespace(urandom=bytes))
        patch.setattr(clipping, "all_noised", lambda sums, std: {name: t + std for name, t in sums.items()})
        answer = answered(signed_task(study, "neuro", run=run), workspace)
    return unpack_tensors(workspace.answers.parcels(answer))


# ---- once for each answer -------------------------------------------------------------------------------------------


def test_round_asked_again_gets_the_stored_answer_to_the_byte_and_no_charge(study: SmallStudy) -> None:
    task, first = signed_task(study, "neuro"), at(study)
    answer = answered(task, first)
    stored, head = files_of(first), book_of(first).head
    for again in (first, at(study), at(study, public=tuple(Public))):
        assert answered(task, again) == answer
    assert files_of(first) == stored
    assert book_of(first).head == head
    stricter = at(study, PrivacyDemand(mode=Demanded.dp, epsilon=0.01, delta=DELTA))
    assert answered(task, stricter) == answer, "it was paid for"


def test_noise_and_samples_are_fresh_in_each_round_that_is_trained(study: SmallStudy, workspace: Workspace) -> None:
    """Same parameters, recipe, seed and round, in two runs."""
    updates = [answered(signed_task(study, "neuro", run=run), workspace) for run in ("small-1", "other-2")]
    one, other = (unpack_tensors(workspace.answers.parcels(update)) for update in updates)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert fates(workspace) == [Fate.released] * 2, "and all runs are charged to one ledger"


def test_what_a_round_without_noise_left_behind_does_not_go_out_with_a_noised_one(study: SmallStudy) -> None:
    """The hospital has changed its policy in the midst of a run."""
    rounding = "federation.wire.up=int8"
    lax = at(study, PrivacyDemand(mode=Demanded.none), (Public.updates,))
    plain = study.with_settings("rounds=9", rounding)
    voted = dict.fromkeys(("trunk", "heads", "brain", "heart"), 1)
    answered(signed_task(plain, "neuro"), lax)
    assert lax.answers.kept("small-1", voted).residual, "it is there to be misused"
    noised = study.with_settings(*PRIVATE, rounding, "privacy.mode=dp_adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_training, "_computed", _nothing_learned)
        answer = answered(signed_task(noised, "neuro", round=2, voted=voted), at(study))
    deltas = unpack_tensors(lax.answers.parcels(answer))
    assert not any(bool(delta.any()) for delta in deltas.values())
    assert not any(lax.answers.kept("small-1", dict.fromkeys(voted, 2)).residual.values())


def _nothing_learned(train: Callable[[], PrivateRound]) -> PrivateRound:
    trained = train()
    return replace(trained, deltas={name: torch.zeros_like(delta) for name, delta in trained.deltas.items()})


class Crash(BaseException):
    """The process dies here."""


def _dies_before(method: str) -> Callable[[pytest.MonkeyPatch], None]:
    owner = {"reserve": Ledger, "release": Ledger, "commit": AnswerStore}[method]

    def crash(*_arguments: object, **_settings: object) -> None:
        raise Crash

    return lambda patch: patch.setattr(owner, method, crash)


def _dies_after(method: str) -> Callable[[pytest.MonkeyPatch], None]:
    owner = {"reserve": Ledger, "release": Ledger, "commit": AnswerStore}[method]
    whole = getattr(owner, method)

    def crash(*arguments: object, **settings: object) -> None:
        whole(*arguments, **settings)
        raise Crash

    return lambda patch: patch.setattr(owner, method, crash)


def _dies_in_training(patch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: object) -> None:
        raise Crash

    patch.setattr(private_round, "poisson_sample", crash)


@pytest.mark.parametrize(
    ("dies", "left", "then"),
    [
        (_dies_before("reserve"), [], [Fate.released]),
        (_dies_after("reserve"), [Fate.reserved], [Fate.reserved, Fate.released]),
        (_dies_in_training, [Fate.reserved], [Fate.reserved, Fate.released]),
        (_dies_before("release"), [Fate.reserved], [Fate.reserved, Fate.released]),
        (_dies_after("release"), [Fate.released], [Fate.released, Fate.released]),
        (_dies_before("commit"), [Fate.released], [Fate.released, Fate.released]),
        (_dies_after("commit"), [Fate.released], [Fate.released]),
    ],
    ids=["before charge", "after charge", "training", "before release", "release", "before answer", "answer"],
)
def test_crash_counts_and_what_was_not_kept_is_charged_again(
    study: SmallStudy, dies: Callable[[pytest.MonkeyPatch], None], left: list[Fate], then: list[Fate]
) -> None:
    task = signed_task(study, "neuro")
    with pytest.MonkeyPatch.context() as patch:
        dies(patch)
        with pytest.raises(Crash):
            take_part(task, at(study))
    assert fates(at(study)) == left
    answer = answered(task, at(study))
    assert fates(at(study)) == then
    assert answer.privacy is not None
    assert answer.privacy.epsilon == pytest.approx(epsilon_of(len(then)), rel=1e-6)


def test_site_that_never_gets_to_the_end_of_a_round_stops_paying_for_it(
    study: SmallStudy, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object) -> None:
        raise MemoryError("sub-31415")

    task = signed_task(study, "neuro")
    with monkeypatch.context() as patch:
        patch.setattr(private_round, "poisson_sample", fails)
        for _ in range(MOST_ATTEMPTS):
            with pytest.raises(PrivateTrainingFailed) as failed:
                take_part(task, workspace)
        assert refused(take_part(task, workspace)) == "unfinished"
    told = released_error(failed.value).answer
    assert refused(told) == "site_error", "not even that memory was short"
    assert fates(workspace) == [Fate.reserved] * MOST_ATTEMPTS
    assert isinstance(take_part(signed_task(study, "neuro", round=2), workspace), SiteUpdate), "another round"


# ---- what stops it before a charge ----------------------------------------------------------------------------------


def test_round_that_would_pass_the_budget_is_refused_uncharged_and_the_site_stays_so(study: SmallStudy) -> None:
    tight = PrivacyDemand(mode=Demanded.dp, epsilon=(epsilon_of(2) + epsilon_of(3)) / 2, delta=DELTA)
    answers = [take_part(signed_task(study, "neuro", round=number), at(study, tight)) for number in (1, 2, 3, 4)]
    assert [isinstance(answer, SiteUpdate) for answer in answers] == [True, True, False, False]
    assert refused(answers[2]) == refused(answers[3]) == "budget_spent"
    assert fates(at(study)) == [Fate.released] * 2


def test_parameters_of_other_shapes_cost_nothing(study: SmallStudy, workspace: Workspace) -> None:
    task = signed_task(study, "neuro")
    other = {name: torch.zeros(3) for name in task.student}
    with pytest.raises(CheckpointError):
        take_part(signed_task(study, "neuro", student=other), workspace)
    assert fates(workspace) == []


def test_witness_that_the_ledger_does_not_know_stops_the_site(study: SmallStudy, workspace: Workspace) -> None:
    first = answered(signed_task(study, "neuro"), workspace)
    answered(signed_task(study, "neuro", round=2), workspace)
    assert first.privacy is not None
    known = first.privacy.ledger_head
    answered(signed_task(study, "neuro", round=3, ledger_witness=known), workspace)
    longer = f"{known.partition(':')[0]}:99"
    for witness in (longer, f"{'ab' * 32}:{known.partition(':')[2]}"):
        with pytest.raises(AuditError):
            take_part(signed_task(study, "neuro", round=4, ledger_witness=witness), workspace)
    with pytest.raises(ProtocolError, match="ledger_witness"):
        take_part(signed_task(study, "neuro", round=4, ledger_witness="/srv"), workspace)
    assert fates(workspace) == [Fate.released] * 3


def test_ledger_that_was_changed_stops_the_site(study: SmallStudy, workspace: Workspace) -> None:
    answered(signed_task(study, "neuro"), workspace)
    log = workspace.folder / STATE / "ledger.log"
    log.write_bytes(log.read_bytes().replace(b'"steps":2', b'"steps":1'))
    with pytest.raises(AuditError):
        take_part(signed_task(study, "neuro", round=2), workspace)


# ---- whose word counts ----------------------------------------------------------------------------------------------


def test_policy_that_demands_privacy_refuses_a_recipe_without(study: SmallStudy, workspace: Workspace) -> None:
    assert refused(take_part(signed_task(study.with_settings(), "neuro"), workspace)) == "privacy"
    assert fates(workspace) == []


def test_without_a_budget_noise_is_charged_to_nobody_and_the_site_says_so(
    study: SmallStudy, caplog: pytest.LogCaptureFixture
) -> None:
    lax = PrivacyDemand(mode=Demanded.none)
    assert refused(take_part(signed_task(study, "neuro"), at(study, lax))) == "no_budget"
    open_site = at(study, lax, (Public.updates,))
    answer = answered(signed_task(study, "neuro"), open_site)
    assert (answer.privacy, answer.metrics, answer.num_subjects) == (None, None, 50)
    assert not has_ledger(open_site.folder)
    assert "charged to nobody" in caplog.text
    assert any(record.levelno == logging.WARNING for record in caplog.records)


def test_policy_without_demand_but_with_a_budget_charges(study: SmallStudy) -> None:
    answer = answered(signed_task(study, "neuro"), at(study, replace(DP, mode=Demanded.none)))
    assert answer.privacy is not None
    assert fates(at(study)) == [Fate.released]


def test_bound_on_noise_is_kept_by_no_recipe_without_noise(study: SmallStudy) -> None:
    workspace = at(study, PrivacyDemand(mode=Demanded.none), (Public.updates,))
    for least, code in ((NOISE, ""), (NOISE + 0.1, "recipe_out_of_bounds")):
        bounds = {"privacy.noise_multiplier": Bounds(least=least)}
        bound = replace(workspace, policy=replace(workspace.policy, bounds=bounds))
        answer = take_part(signed_task(study, "neuro", run=f"run-{least}"), bound)
        assert (answer.code if isinstance(answer, Refusal) else "") == code
        plain = take_part(signed_task(study.with_settings(), "neuro", run="plain"), bound)
        assert refused(plain) == "recipe_out_of_bounds"
