"""How a site takes part: it says who it is, and it answers a round's task with an update or a considered no."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import torch
from torch import Tensor

import panfm
from client.private_training import train_privately
from client.progress import log_step
from client.workspace import Workspace
from panfm.config import Recipe
from panfm.data.native import spacing_class
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.protocol import PROTOCOL_VERSION, SPACINGS, JoinAnswer, Refusal, SiteUpdate, TrainTask
from panfm.site.admission import Admitted, Refused, Repeated, SiteFacts, admit, offered_organs
from panfm.site.answers import Kept
from panfm.site.free_memory import free_memory_gib
from panfm.wire.feedback import encode_with_feedback
from panfm.wire.parcels import Parcel, pack

log = logging.getLogger("panfm.client")


def join(workspace: Workspace) -> JoinAnswer:
    """Who this site is, what it offers and what it trains with; what of it may be told is for the egress gate to say."""
    subjects = workspace.subjects()
    organs = offered_organs(workspace.policy, subjects)
    return JoinAnswer(
        site=workspace.policy.site,
        organs=organs,
        protocol_version=PROTOCOL_VERSION,
        panfm_version=panfm.__version__,
        num_subjects={organ: len(subjects[organ]) for organ in organs},
        torch_version=str(torch.__version__),
        device=torch.device(workspace.policy.device).type,
        spacing={organ: _commonest_spacing(workspace, organ) for organ in organs},
    )


def _commonest_spacing(workspace: Workspace, organ: str) -> str:
    """The class of spacing that most scans of an organ have; of equally common ones the first of `SPACINGS`."""
    entries = (entry for entry in workspace.store.entries if entry.organ == organ)
    counts = Counter(spacing_class(entry.spacing_mm, entry.native) for entry in entries)
    return max(SPACINGS, key=counts.__getitem__)


def take_part(task: TrainTask, workspace: Workspace) -> SiteUpdate | Refusal:
    """Answer one task: from the store when it was answered before, by training when the site admits it.

    Returns: an update without its deltas, which are in the parcels of the store.
    """
    verdict = admit(task, workspace.policy, _facts(task, workspace))
    if isinstance(verdict, Admitted):
        verdict = _commit(task, verdict.recipe, verdict.organs, workspace) or verdict
    if isinstance(verdict, Repeated) and not workspace.answers.is_whole(task.run, task.round):
        verdict = Refused(code="answer_gone")
    if isinstance(verdict, Refused):
        log.warning("refused round %d of %.80r: %s. %s", task.round, task.run, verdict.reason, verdict.note)
        return Refusal(
            run=task.run, round=task.round, site=workspace.policy.site, code=verdict.code, reason=verdict.reason
        )
    return workspace.answers.read(task.run, task.round)


def _facts(task: TrainTask, workspace: Workspace) -> SiteFacts:
    """What the site knows of itself now."""
    now = datetime.now(UTC)
    return SiteFacts(
        subjects=workspace.subjects(),
        answered_digest=workspace.answers.digest(task.run, task.round),
        now=now,
        rounds_answered=workspace.answers.count_since(now - timedelta(days=1)),
        spent_epsilon=workspace.spent_epsilon(),
        free_memory_gib=free_memory_gib(workspace.policy.device),
    )


def _commit(task: TrainTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace) -> Refused | None:
    """Train, and put the answer into the store. Returns: what speaks against training after all; nothing is stored then."""
    if not recipe.privacy.is_on:
        _commit_trained(task, recipe, organs, workspace)
        return None
    private = train_privately(task, recipe, organs, workspace)
    if isinstance(private, Refused):
        return private
    # Nothing is carried on from round to round: what a round without noise has left behind would go out beside the noise.
    answer, parcels, _ = _packed(private.update, recipe, {})
    workspace.answers.commit(answer, parcels, dropped=private.dropped)
    return None


def _commit_trained(task: TrainTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace) -> None:
    """Without privacy: with the answer goes what the site keeps of it for the rounds to come.

    What an update left behind counts only where that update did: so it is taken from the round in which it last had a vote.
    """
    voted = {group: number for group, number in task.voted.items() if number < task.round}
    before = workspace.answers.kept(task.run, voted)
    trained = _train(task, recipe, organs, before, workspace)
    answer, parcels, residual = _packed(_answer(task, trained, workspace), recipe, before.residual)
    kept = Kept(residual=residual, moments=trained.moments)
    workspace.answers.commit(answer, parcels, kept, trained.dropped, voted.values())


def _packed(
    answer: SiteUpdate, recipe: Recipe, residual: Mapping[str, Tensor]
) -> tuple[SiteUpdate, tuple[Parcel, ...], dict[str, Tensor]]:
    """An answer without its deltas, the parcels that hold them, and what their encoding rounded away."""
    wire = recipe.federation.wire
    raw, rounded_away = encode_with_feedback(answer.deltas, residual, wire.up)
    parcels = tuple(pack(raw, wire.zstd_level, wire.parcel_bytes))
    return replace(answer, deltas={}, parcels=tuple(parcel.label for parcel in parcels)), parcels, rounded_away


def _answer(task: TrainTask, trained: TrainedRound, workspace: Workspace) -> SiteUpdate:
    return SiteUpdate(
        run=task.run,
        round=task.round,
        site=workspace.policy.site,
        task_digest=task.digest(),
        deltas=trained.deltas,
        num_subjects=trained.num_subjects,
        organ_subjects=trained.organ_subjects,
        num_steps=trained.num_steps,
        metrics=trained.metrics,
    )


def _train(
    task: TrainTask, recipe: Recipe, organs: tuple[str, ...], before: Kept, workspace: Workspace
) -> TrainedRound:
    """What the site learned; the scans that it did without are named in its own log."""
    site = workspace.policy.site
    groups = (*SHARED_GROUPS, *organs)  # of an organ whose scans the site no longer has, it was sent too much
    trained = train_round(
        keep_groups(task.student, groups),
        keep_groups(task.teacher, groups),
        workspace.dataset(organs, recipe),
        recipe,
        site=site,
        round_number=task.round,
        moments=before.moments,
        device=workspace.policy.device,
        loader_threads=workspace.policy.loader_threads,
        on_step=partial(log_step, site, task.round),
    )
    for scan in trained.dropped:
        log.warning("round %d went without a scan: %s", task.round, scan.reason)
    return trained
