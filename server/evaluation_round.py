"""The evaluation of the model after a round: the sites are asked, what they report is judged, summed up and put on record.

Nothing of it changes the model or the next round. It may be interrupted anywhere: a round without its `round_evaluated` on
record is evaluated again, and the sites answer from their stores.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from panfm import recipes
from panfm.config import EvaluationConfig, Recipe
from panfm.export.model_folder import ModelFolder
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.protocol import EvaluateTask, JoinAnswer, Refusal, SiteReport, Task
from panfm.reporting.record import RoundEvaluated, SiteEvaluated
from panfm.signing import sign
from server.best_model import forget_other_best, keep_best
from server.evaluations import Evaluations
from server.exchange import Exchanged, Fate
from server.messages import one_line
from server.run_record import RunRecord

log = logging.getLogger("panfm.server")

Ask = Callable[[dict[int, Task]], Iterator[Exchanged]]
"""`server.exchange.exchange`, which empties the mapping, with all but the tasks given; replies of earlier rounds are the
caller's to name."""

LARGEST_METRIC = 1e9
"""A site's own gate lets nothing larger out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What one site's report is held against; the task itself is gone when it comes."""

    run: str
    round: int
    site: str
    digest: str
    """Of the task."""
    organs: tuple[str, ...]
    """That the site declared when it joined."""

    @classmethod
    def of(cls, task: Task, organs: tuple[str, ...]) -> Asked:
        """What the report on this task will be held against."""
        return cls(run=task.run, round=task.round, site=task.site, digest=task.digest(), organs=organs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Has the sites of one run evaluate its models."""

    run: str
    recipe: Recipe
    key: Ed25519PrivateKey
    folder: Path
    """The run's."""
    record: RunRecord
    past: Evaluations
    """What the record tells so far; goes on with each evaluation."""
    ask: Ask

    def evaluate(
        self,
        model: ModelFolder,
        sites: Mapping[int, JoinAnswer],
        as_received: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        model_digest: str,
    ) -> RoundEvaluated:
        """Evaluate the model after its round, and keep it beside the others if it is the best.

        Args:
            sites: node -> site, those that take part now.
            as_received: what the sites will decode of tensors that are sent to them.
            model_digest: as on record for that round.
        """
        started, number = time.monotonic(), model.card.round
        tasks = self._tasks(model, sites, as_received)
        asked = {node: Asked.of(task, sites[node].organs) for node, task in tasks.items()}
        verdicts = [self._note(asked[e.node], e) for e in self.ask(tasks) if e.fate is not Fate.overdue]
        summary = self.past.summary(
            number,
            [verdict for verdict in verdicts if verdict.outcome == "accepted"],
            model_digest=model_digest,
            seconds=time.monotonic() - started,
        )
        if summary.best_round == number:
            keep_best(self.folder, model)
        self._put(summary)
        if summary.best_round is not None:
            forget_other_best(self.folder, summary.best_round)
        log.info("round %d evaluated by %d sites: %s", number, len(summary.sites), told(summary, self.recipe))
        return summary

    def _tasks(
        self,
        model: ModelFolder,
        sites: Mapping[int, JoinAnswer],
        as_received: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    ) -> dict[int, Task]:
        """One a site that may be able to, each with only the groups that the site needs."""
        student, teacher, recipe = as_received(model.student), as_received(model.teacher), recipes.to_yaml(self.recipe)
        tasks: dict[int, Task] = {}
        for node in sorted(node for node, site in sites.items() if self.past.can_ask(site.site)):
            site = sites[node]
            groups = (*SHARED_GROUPS, *site.organs)
            task = EvaluateTask(
                run=self.run,
                round=model.card.round,
                site=site.site,
                recipe=recipe,
                student=keep_groups(student, groups),
                teacher=keep_groups(teacher, groups),
            )
            tasks[node] = task.signed(sign(self.key, task.digest()))
        return tasks

    def _note(self, asked: Asked, exchanged: Exchanged) -> SiteEvaluated:
        """One site's part, judged and on record."""
        verdict = judged(asked, exchanged, self.recipe.federation.evaluation)
        self._put(verdict)
        if verdict.outcome != "accepted":
            what = verdict.outcome.replace("_", " ")
            log.warning("evaluation after round %d: %s %s: %s", verdict.round, verdict.site, what, verdict.reason)
        return verdict

    def _put(self, event: SiteEvaluated | RoundEvaluated) -> None:
        self.record.write(event)
        self.past.note(event)


def judged(asked: Asked, exchanged: Exchanged, config: EvaluationConfig) -> SiteEvaluated:
    """What one site's part comes to."""
    outcome, reason = _outcome(asked, exchanged, config)
    report = exchanged.answer if isinstance(exchanged.answer, SiteReport) else None
    counted = report if outcome == "accepted" else None
    return SiteEvaluated(
        round=asked.round,
        site=asked.site,
        outcome=outcome,
        reason=reason,
        seconds=exchanged.seconds,
        bytes_down=exchanged.bytes_down,
        bytes_up=exchanged.bytes_up,
        num_subjects=counted.num_subjects if counted else 0,
        organ_subjects=counted.organ_subjects if counted else {},
        metrics=asdict(counted.metrics) if counted else {},
        audit_head=one_line(report.audit_head) if report else "",
    )


def _outcome(asked: Asked, exchanged: Exchanged, config: EvaluationConfig) -> tuple[str, str]:
    """A word of `SiteEvaluated.outcome`, and the reason for it."""
    answer = exchanged.answer
    if exchanged.fate is not Fate.answered:
        return exchanged.fate.value, exchanged.reason
    if isinstance(answer, Refusal):
        failed = answer.code.startswith("site_")  # of an error there; other codes are considered refusals
        return "failed" if failed else "refused", one_line(f"{answer.code}: {answer.reason}")
    if not isinstance(answer, SiteReport):
        return "left_out", "the reply to an evaluation is neither a report nor a refusal"
    reason = why_left_out(asked, answer, config)
    return ("accepted", "") if reason is None else ("left_out", reason)


def why_left_out(asked: Asked, report: SiteReport, config: EvaluationConfig) -> str | None:
    """Why this report must not count, or None when it may; names fields, and holds no value of a metric."""
    for name in ("run", "round", "site"):
        if getattr(report, name) != getattr(asked, name):
            return f"reports on {name} {getattr(report, name)!r:.80}, expected {getattr(asked, name)!r:.80}"
    if report.task_digest != asked.digest:
        return "reports on another task than it was sent"
    if report.num_subjects < 1:
        return "looked at no subject; a site without held-out subjects should refuse instead"
    if any(not 0 <= number <= report.num_subjects for number in report.organ_subjects.values()):
        return "counts subjects of an organ outside 0 to its subjects in all"
    return _wrong_metric(report, asked.organs, config)


def _wrong_metric(report: SiteReport, organs: Collection[str], config: EvaluationConfig) -> str | None:
    """Keys that nobody asked for, and values beyond what each metric can be: one site must not outshout the mean."""
    metrics = report.metrics
    for what, named in (("subjects", report.organ_subjects), ("share", metrics.share), ("lift", metrics.lift)):
        if not named.keys() <= set(organs):
            return f"tells {what} of an organ that the site did not declare"
    if not metrics.probes.keys() <= set(config.probes):
        return "tells a probe that the recipe does not name"
    plain = {"loss": metrics.loss, "loss_patch": metrics.loss_patch, "collapse_loss": metrics.collapse_loss}
    optional = {"loss_organ": metrics.loss_organ, "share_entropy": metrics.share_entropy}
    by_organ = {f"{name}.{organ}": v for name in ("share", "lift") for organ, v in getattr(metrics, name).items()}
    for name, value in {**plain, **optional, **by_organ}.items():
        if value is not None and not (math.isfinite(value) and 0 <= value <= LARGEST_METRIC):
            return f"metric {name} is not a number in 0 to {LARGEST_METRIC:g}"
    for name, value in metrics.probes.items():
        if not (0 if name in config.classes else -1) <= value <= 1:
            return f"probe {name} is outside what its score can be"
    return None


def told(summary: RoundEvaluated, recipe: Recipe) -> str:
    """The evaluation in a few words, for a terminal."""
    if summary.score is None:
        return f"nobody told {recipe.federation.evaluation.best_by}"
    best = "the best so far" if summary.best_round == summary.round else f"round {summary.best_round} stays the best"
    return f"{recipe.federation.evaluation.best_by} {summary.score:.4f}, {best}"
