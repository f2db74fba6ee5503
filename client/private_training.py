"""How a site answers a task with privacy: what can fail without a subject, then the charge, then the noise, then the answer.

The order is the promise. Model, parameters and objective are tried on made-up subjects before anything is charged. The charge is
on disk before a subject is looked at, and nothing undoes it: a crash after it, wherever it comes, leaves it counted, and a task
that was not answered is charged again when it is asked again, because its noise will be fresh. Of an answer that was kept there
is nothing to charge: it is sent again as it stands.

What goes wrong after the charge is told as an error and no more, whatever it was: what it was might follow from a subject.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from client.progress import log_step
from client.workspace import Workspace
from panfm.config import Recipe
from panfm.data.dataset import DroppedScan, SubjectDataset
from panfm.errors import ConfigError, ProtocolError
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.private_scope import round_cost
from panfm.privacy.accounting import Budget
from panfm.protocol import PrivacySpent, SiteUpdate, TrainTask
from panfm.site.admission import Refused
from panfm.site.audit_chain import Head, head_from
from panfm.site.ledger import Ledger, OverBudget, Reserved
from panfm.site.ledger_book import Fate, Purpose

if TYPE_CHECKING:
    from panfm.pretrain.private_round import PrivateRound

log = logging.getLogger("panfm.client")

MOST_ATTEMPTS = 3
"""Charges for one task. A crash or two happen; a site that never gets to the end of a round would spend its budget on nothing."""


class PrivateTrainingFailed(Exception):
    """Something went wrong after the charge; of its cause only the site's own log may tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateAnswer:
    """What a round with privacy gave."""

    update: SiteUpdate
    """With the deltas in it. All of it may leave."""
    dropped: tuple[DroppedScan, ...]
    """Scans that it did without; for the site alone, as their number, too, follows from who was sampled."""


def train_privately(
    task: TrainTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace
) -> PrivateAnswer | Refused:
    """Train these organs by a task that was admitted, charged to the ledger where the policy has a budget.

    Raises: AuditError when the ledger is not as it was written or as the task's witness has it, ConfigError or CheckpointError
        when recipe or parameters cannot be had, all before anything is charged; PrivateTrainingFailed after it.
    """
    dataset = workspace.dataset(organs, recipe)
    train = _prepared(task, recipe, dataset, workspace)
    budget = workspace.policy.privacy.budget
    if budget is None:
        log.warning("round %d adds noise that is charged to nobody: the policy names no budget", task.round)
        return _answer(task, organs, _computed(train), None, dataset, workspace)
    ledger = workspace.ledger(_witnesses(task))
    reserved = _charge(ledger, task, recipe, dataset, budget)
    if isinstance(reserved, Refused):
        return reserved
    trained = _computed(train)
    spent = PrivacySpent(
        epsilon=reserved.epsilon_after,
        delta=budget.delta,
        budget=budget.epsilon,
        ledger_head=str(ledger.release(reserved)),
    )
    return _answer(task, organs, trained, spent, dataset, workspace)


def _prepared(
    task: TrainTask, recipe: Recipe, dataset: SubjectDataset, workspace: Workspace
) -> Callable[[], PrivateRound]:
    """The round, begun as far as it can be without a subject."""
    from panfm.pretrain.private_round import run_private_round  # Opacus comes with it, and takes seconds
    from panfm.pretrain.private_step import PrivateTraining

    torch.set_num_threads(recipe.threads)
    groups, policy = (*SHARED_GROUPS, *dataset.organs), workspace.policy
    student, teacher = keep_groups(task.student, groups), keep_groups(task.teacher, groups)
    training = PrivateTraining(student, teacher, dataset.organs, recipe, recipe.privacy, device=policy.device)
    return partial(run_private_round, training, dataset, task.round, partial(log_step, policy.site, task.round))


def _charge(
    ledger: Ledger, task: TrainTask, recipe: Recipe, dataset: SubjectDataset, budget: Budget
) -> Reserved | Refused:
    """The charge of one round to all who may be sampled, or what speaks against it."""
    purpose = Purpose(run=task.run, round=task.round, task_digest=task.digest())
    charges = (charge for charge in ledger.book().charges if charge.purpose.task_digest == purpose.task_digest)
    attempts = sum(charge.fate is Fate.reserved for charge in charges)
    if attempts >= MOST_ATTEMPTS:
        return Refused(code="unfinished", note=f"it is charged {attempts} times already")
    reserved = ledger.reserve(round_cost(recipe), purpose, dataset.subjects, budget)
    if isinstance(reserved, OverBudget):
        return Refused(code="budget_spent", note=f"with it: {reserved.epsilon_after:.4g} of {budget.epsilon:g}")
    return reserved


def _computed(train: Callable[[], PrivateRound]) -> PrivateRound:
    try:
        return train()
    except Exception as error:
        raise PrivateTrainingFailed("training with privacy failed after its charge, which stays") from error


def _answer(
    task: TrainTask,
    organs: tuple[str, ...],
    trained: PrivateRound,
    spent: PrivacySpent | None,
    dataset: SubjectDataset,
    workspace: Workspace,
) -> PrivateAnswer:
    """All that is told besides the noised deltas follows from recipe, policy and ledger."""
    for scan in dataset.dropped:
        log.warning("round %d went without a scan: %s", task.round, scan.reason)
    nominal = workspace.policy.nominal_subjects
    update = SiteUpdate(
        run=task.run,
        round=task.round,
        site=workspace.policy.site,
        task_digest=task.digest(),
        deltas=trained.deltas,
        num_subjects=nominal,
        organ_subjects=dict.fromkeys(organs, nominal),
        num_steps=trained.num_steps,
        metrics=None,
        privacy=spent,
    )
    return PrivateAnswer(update=update, dropped=dataset.dropped)


def _witnesses(task: TrainTask) -> tuple[Head, ...]:
    """The head that the run's record has of this site's ledger."""
    try:
        return (head_from(task.ledger_witness),) if task.ledger_witness else ()
    except ConfigError as error:
        raise ProtocolError(f"the task's ledger_witness: {error}") from error
