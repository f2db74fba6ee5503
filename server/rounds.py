"""One round of a run: tasks out, answers in and judged, the mean per group, and what happened on record.

Flower's stock averaging ends the whole run when replies carry different groups, and shrinks what only some sites sent; so
the loop is our own. What fails a check is left out, named with its reason, and the round goes on.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from panfm import recipes, update
from panfm.config import Recipe
from panfm.errors import ProtocolError
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.collapse import collapse_reason
from panfm.pretrain.schedules import log_momentum
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate, TrainTask
from panfm.reporting.record import RoundFinished, RoundStarted, SiteAnswered
from panfm.signing import sign
from server.aggregation.checks import check_update
from server.aggregation.organ_mean import aggregate_round
from server.messages import decode_reply, encode_task, one_line, size_bytes
from server.replies import gather
from server.run_record import RunRecord

log = logging.getLogger("panfm.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalModel:
    """Student and teacher of the federation, all groups, fp32 on the CPU."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]

    def digest(self) -> str:
        """SHA-256 over both."""
        both = {f"{part}/{name}": t for part in ("student", "teacher") for name, t in getattr(self, part).items()}
        return update.digest(both)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one answer came to; the words of `panfm.reporting.record.SiteAnswered`."""

    outcome: str
    reason: str = ""
    update: SiteUpdate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one answer cost."""

    seconds: float
    bytes_down: int
    bytes_up: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one round."""

    accepted: list[SiteUpdate] = field(default_factory=list)
    collapsed: list[str] = field(default_factory=list)
    """Sites left out because their own training collapsed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRunner:
    """Runs rounds of one run."""

    grid: Grid
    run: str
    recipe: Recipe
    key: Ed25519PrivateKey
    record: RunRecord

    def run_round(
        self, number: int, model: GlobalModel, sites: Mapping[int, JoinAnswer]
    ) -> tuple[GlobalModel, Outcome, RoundFinished]:
        """One round.

        Args:
            number: counted from 1.
            sites: node -> site, the participants.
        Returns: the next model (the same one when too few sites answered), what became of the answers, and the event
            to put on record when the model is safe.
        """
        started = time.monotonic()
        recipe = recipes.to_yaml(self.recipe)
        tasks = {node: self._task(number, model, site, recipe) for node, site in sorted(sites.items())}
        self.record.write(RoundStarted(round=number, sites=sorted(site.site for site in sites.values())))
        outcome = self._collect(tasks, sites, started)
        enough = len(outcome.accepted) >= self.recipe.federation.min_sites
        result = aggregate_round(
            model.student,
            model.teacher,
            outcome.accepted if enough else [],
            self.recipe.federation,
            lambda num_steps: log_momentum(self.recipe, number, num_steps),
        )
        new_model = GlobalModel(student=result.student, teacher=result.teacher)
        finished = RoundFinished(
            round=number,
            seconds=time.monotonic() - started,
            weights=result.weights,
            unchanged_groups=result.unchanged,
            delta_norm=result.delta_norm,
            model_digest=new_model.digest(),
        )
        return new_model, outcome, finished

    def _task(self, number: int, model: GlobalModel, site: JoinAnswer, recipe: str) -> TrainTask:
        """Only the groups that the site needs: trunk, heads and its organs."""
        groups = (*SHARED_GROUPS, *site.organs)
        task = TrainTask(
            run=self.run,
            round=number,
            site=site.site,
            recipe=recipe,
            student=keep_groups(model.student, groups),
            teacher=keep_groups(model.teacher, groups),
        )
        return task.signed(sign(self.key, task.digest()))

    def _collect(self, tasks: Mapping[int, TrainTask], sites: Mapping[int, JoinAnswer], started: float) -> Outcome:
        """Send the tasks; judge and record each answer when it comes, and name those that did not come."""
        outcome = Outcome()
        messages = {node: encode_task(task, node) for node, task in tasks.items()}
        waiting = dict(tasks)
        deadline_s = self.recipe.federation.round_deadline_s
        for node, reply in gather(self.grid, messages, deadline_s):
            verdict = self._judge(waiting.pop(node), sites[node], reply, outcome)
            spent = Spent(
                seconds=time.monotonic() - started, bytes_down=size_bytes(messages[node]), bytes_up=size_bytes(reply)
            )
            self._note(tasks[node], verdict, spent)
        for node, task in waiting.items():
            spent = Spent(seconds=time.monotonic() - started, bytes_down=size_bytes(messages[node]), bytes_up=0)
            self._note(task, Verdict(outcome="late", reason=f"no answer within {deadline_s:.0f} s"), spent)
        return outcome

    def _judge(self, task: TrainTask, site: JoinAnswer, reply: Message, outcome: Outcome) -> Verdict:
        """Whether an answer counts; those that do are added to the outcome."""
        if reply.has_error():
            return Verdict(outcome="failed", reason="the site's program ended without an answer; its own log says why")
        try:
            answer = decode_reply(reply)
        except ProtocolError as error:
            return Verdict(outcome="left_out", reason=one_line(str(error)))
        if isinstance(answer, Refusal):
            failed = answer.code.startswith("site_")  # of an error there; other codes are considered refusals
            return Verdict(
                outcome="failed" if failed else "refused", reason=one_line(f"{answer.code}: {answer.reason}")
            )
        if not isinstance(answer, SiteUpdate):
            return Verdict(outcome="left_out", reason="the reply to a task is neither an update nor a refusal")
        reason = self._why_left_out(task, site, answer)
        if reason is None and answer.metrics and (reason := collapse_reason(answer.metrics)) is not None:
            outcome.collapsed.append(site.site)
        if reason is not None:
            return Verdict(outcome="left_out", reason=reason, update=answer)
        outcome.accepted.append(answer)
        return Verdict(outcome="accepted", update=answer)

    def _why_left_out(self, task: TrainTask, site: JoinAnswer, answer: SiteUpdate) -> str | None:
        return check_update(
            answer,
            run=task.run,
            round=task.round,
            site=task.site,
            task_digest=task.digest(),
            expected={name: (tensor.shape, tensor.dtype) for name, tensor in task.student.items()},
            organs=site.organs,
            max_delta_norm=self.recipe.federation.max_delta_norm,
            max_steps=self.recipe.pretrain.steps_per_round,
        )

    def _note(self, task: TrainTask, verdict: Verdict, spent: Spent) -> None:
        """Put one answer on record."""
        answer = verdict.update if verdict.outcome == "accepted" else None
        self.record.write(
            SiteAnswered(
                round=task.round,
                site=task.site,
                outcome=verdict.outcome,
                reason=verdict.reason,
                seconds=spent.seconds,
                bytes_down=spent.bytes_down,
                bytes_up=spent.bytes_up,
                num_subjects=answer.num_subjects if answer else 0,
                organ_subjects=answer.organ_subjects if answer else {},
                num_steps=answer.num_steps if answer else 0,
                metrics=asdict(answer.metrics) if answer and answer.metrics else {},
                audit_head=one_line(verdict.update.audit_head) if verdict.update else "",
            )
        )
        if verdict.outcome != "accepted":
            log.warning("round %d: %s %s: %s", task.round, task.site, verdict.outcome.replace("_", " "), verdict.reason)
