"""How a site judges a model: on subjects that it holds out, with its own labels, in numbers and without a tensor."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import torch

from client.workspace import Workspace
from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.evaluation.embedding import embed_readable
from panfm.evaluation.site_probes import Labelled, labels_of, site_probes, wants
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.organs import in_order
from panfm.pretrain.held_out import held_out_loss
from panfm.protocol import EvaluateTask, EvaluationMetrics, Refusal, SiteReport
from panfm.randomness import stream
from panfm.site.admission import Admitted, Refused, SiteFacts, admit
from panfm.site.free_memory import free_memory_gib

log = logging.getLogger("panfm.client")


def evaluate(task: EvaluateTask, workspace: Workspace) -> SiteReport | Refusal:
    """Answer one task: from the store when it was answered before, by looking at held-out subjects when the site admits it."""
    verdict = admit(task, workspace.policy, _facts(task, workspace))
    if isinstance(verdict, Refused):
        log.warning("refused to evaluate round %d of %.80r: %s. %s", task.round, task.run, verdict.reason, verdict.note)
        return Refusal(
            run=task.run, round=task.round, site=workspace.policy.site, code=verdict.code, reason=verdict.reason
        )
    if isinstance(verdict, Admitted):
        workspace.reports.commit(_look(task, verdict.recipe, verdict.organs, workspace))
    return workspace.reports.read(task.run, task.round)


def _facts(task: EvaluateTask, workspace: Workspace) -> SiteFacts:
    """What the site knows of itself now, as far as an evaluation is concerned."""
    now = datetime.now(UTC)
    return SiteFacts(
        subjects=workspace.held_out_subjects(),
        answered_digest=workspace.reports.digest(task.run, task.round),
        now=now,
        rounds_answered=workspace.reports.count_since(now - timedelta(days=1)),
        spent_epsilon=None,
        free_memory_gib=free_memory_gib(workspace.policy.device),
    )


def _look(task: EvaluateTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace) -> SiteReport:
    """The report on a task that was admitted."""
    torch.set_num_threads(recipe.threads)
    started = time.monotonic()
    held_out = _dataset(workspace.held_out, organs, recipe)
    site, groups = workspace.policy.site, (*SHARED_GROUPS, *organs)
    loss = held_out_loss(
        keep_groups(task.student, groups),
        keep_groups(task.teacher, groups),
        held_out,
        recipe,
        site=site,
        device=workspace.policy.device,
    )
    probes = _probes(task, recipe, organs, workspace, held_out)
    for scan in held_out.dropped:
        log.warning("the evaluation after round %d went without a scan: %s", task.round, scan.reason)
    return SiteReport(
        run=task.run,
        round=task.round,
        site=site,
        task_digest=task.digest(),
        num_subjects=loss.num_subjects,
        organ_subjects=loss.organ_subjects,
        metrics=EvaluationMetrics(
            loss=loss.loss,
            loss_patch=loss.loss_patch,
            loss_organ=loss.loss_organ,
            collapse_loss=loss.collapse_loss,
            share=loss.share,
            lift=loss.lift,
            share_entropy=loss.share_entropy,
            probes=probes,
            seconds=time.monotonic() - started,
            dropped_scans=len(held_out.dropped),
        ),
    )


def _probes(
    task: EvaluateTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace, held_out: SubjectDataset
) -> dict[str, float]:
    """The recipe's probes, as far as the site has labels; fitted on its own training subjects."""
    table, config = workspace.folder / "labels.csv", recipe.federation.evaluation
    trained_on = tuple(organ for organ in organs if organ in workspace.subjects())
    if not trained_on or not wants(config, list(labels_of(table, ()))):
        return {}
    parts = []
    for dataset in (_dataset(workspace.store, trained_on, recipe), held_out):
        names, embeddings = embed_readable(task.teacher, recipe, dataset, workspace.policy.device)
        parts.append(Labelled(embeddings=embeddings, labels=labels_of(table, names)))
    return site_probes(config, fit=parts[0], held_out=parts[1])


def _dataset(store: PreparedStore, organs: tuple[str, ...], recipe: Recipe) -> SubjectDataset:
    """The subjects with these organs; of many, the same ones in each round."""
    entries = [entry for entry in store.entries if entry.organ in organs]
    most = recipe.federation.evaluation.max_subjects
    draw = {name: stream(recipe.seed, "evaluated", name).random() for name in sorted({e.subject for e in entries})}
    chosen = set(sorted(draw, key=draw.__getitem__)[:most])
    kept = replace(store, entries=tuple(entry for entry in entries if entry.subject in chosen))
    return SubjectDataset(kept, in_order(organs, tuple(recipe.organs)), recipe.organs)
