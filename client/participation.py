"""How a site takes part: it says who it is, and it answers a round's task with an update or a considered no."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import panfm
from client.workspace import Workspace, free_memory_gib
from panfm.config import Recipe
from panfm.data.dataset import DroppedScan
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.local_round import train_round
from panfm.protocol import PROTOCOL_VERSION, JoinAnswer, Refusal, SiteUpdate, TrainTask
from panfm.site.admission import Admitted, Refused, SiteFacts, admit, offered_organs

log = logging.getLogger("panfm.client")

progress = logging.getLogger("panfm.client.progress")
"""The site's own log of steps; each record has `site`, `round`, `step`, `num_steps` and `loss`. It never leaves the site."""


def join(workspace: Workspace) -> JoinAnswer:
    """Who this site is and what it offers."""
    subjects = workspace.subjects()
    organs = offered_organs(workspace.policy, subjects)
    return JoinAnswer(
        site=workspace.policy.site,
        organs=organs,
        protocol_version=PROTOCOL_VERSION,
        panfm_version=panfm.__version__,
        num_subjects={organ: len(subjects[organ]) for organ in organs},
    )


def take_part(task: TrainTask, workspace: Workspace) -> SiteUpdate | Refusal:
    """Answer one task: from the store when it was answered before, by training when the site admits it."""
    verdict = admit(task, workspace.policy, _facts(task, workspace))
    if isinstance(verdict, Refused):
        log.warning("refused round %d of %.80r: %s. %s", task.round, task.run, verdict.reason, verdict.note)
        return Refusal(
            run=task.run, round=task.round, site=workspace.policy.site, code=verdict.code, reason=verdict.reason
        )
    if isinstance(verdict, Admitted):
        workspace.answers.commit(*_train(task, verdict.recipe, verdict.organs, workspace))
    return workspace.answers.read(task.run, task.round)


def _facts(task: TrainTask, workspace: Workspace) -> SiteFacts:
    """What the site knows of itself now."""
    now = datetime.now(UTC)
    return SiteFacts(
        subjects=workspace.subjects(),
        answered_digest=workspace.answers.digest(task.run, task.round),
        now=now,
        rounds_answered=workspace.answers.count_since(now - timedelta(days=1)),
        spent_epsilon=None,
        free_memory_gib=free_memory_gib(workspace.policy.device),
    )


def _train(
    task: TrainTask, recipe: Recipe, organs: tuple[str, ...], workspace: Workspace
) -> tuple[SiteUpdate, tuple[DroppedScan, ...]]:
    """The answer, and the scans that it did without: they are named here and in the site's report, and nowhere else."""
    site = workspace.policy.site

    def log_step(step: int, num_steps: int, loss: float) -> None:
        about = {"site": site, "round": task.round, "step": step, "num_steps": num_steps, "loss": loss}
        progress.info("round %d step %d of %d: loss %.4f", task.round, step, num_steps, loss, extra=about)

    groups = (*SHARED_GROUPS, *organs)  # of an organ whose scans the site no longer has, it was sent too much
    trained = train_round(
        keep_groups(task.student, groups),
        keep_groups(task.teacher, groups),
        workspace.dataset(organs, recipe),
        recipe,
        site=site,
        round_number=task.round,
        device=workspace.policy.device,
        loader_threads=workspace.policy.loader_threads,
        on_step=log_step,
    )
    for scan in trained.dropped:
        log.warning("round %d went without a scan: %s", task.round, scan.reason)
    answer = SiteUpdate(
        run=task.run,
        round=task.round,
        site=site,
        task_digest=task.digest(),
        deltas=trained.deltas,
        num_subjects=trained.num_subjects,
        organ_subjects=trained.organ_subjects,
        num_steps=trained.num_steps,
        metrics=trained.metrics,
    )
    return answer, trained.dropped
