"""One round of a run: tasks out, answers in and judged, the mean per group, and what happened on record.

Flower's stock averaging ends the whole run when replies carry different groups, and shrinks what only some sites sent; so
the loop is our own. What fails a check is left out, named with its reason, and the round goes on. A round may begin in one
process and end in another: verdicts and the set of answers that count are on record before anything follows from them, and
the answers themselves lie in the spool.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from panfm import recipes, update
from panfm.config import Recipe
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.collapse import collapse_reason
from panfm.pretrain.schedules import log_momentum
from panfm.protocol import JoinAnswer, Refusal, SiteUpdate, Task, TrainTask
from panfm.reporting.record import AnswersAccepted, RoundFinished, RoundStarted, SiteAnswered
from panfm.signing import sign
from panfm.wire.encoding import as_received
from server.aggregation.checks import check_update
from server.aggregation.next_model import RoundResult, aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import Vote
from server.attendance import ACCEPTED, LATE, LEFT_OUT, OVERDUE
from server.coverage import latest_coverage
from server.exchange import Exchanged, Fate, Post, exchange, without_values
from server.journal import OpenRound
from server.messages import one_line
from server.participants import RoundPlan
from server.private_answer import private_names, told_spent, told_unchanged
from server.run_record import RunRecord
from server.spool import Spool, SpooledUpdate

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
    """The answer, where it was one."""
    kept: SpooledUpdate | None = None
    """Where its deltas lie; only of what is accepted."""
    collapsed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRound:
    """What a round came to; nothing of it counts before it is in a checkpoint."""

    model: GlobalModel
    state: ServerState
    answers: dict[str, SiteAnswered]
    """Site -> the verdict on its answer."""
    finished: RoundFinished
    """To go on record when the model is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A task on its way, and what its answer will be held against."""

    task: TrainTask
    site: JoinAnswer
    digest: str
    """Of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRunner:
    """Runs rounds of one run."""

    post: Post
    run: str
    recipe: Recipe
    key: Ed25519PrivateKey
    record: RunRecord
    spool: Spool

    def run_round(self, plan: RoundPlan, opened: OpenRound, model: GlobalModel, state: ServerState) -> EndedRound:
        """One round, or what is left of one that another process began.

        Args:
            plan: whom to ask, of the sites that are there.
            opened: how far the round had come.
            model, state: after the round before; their tensors become those of the next.
        """
        started = time.monotonic()
        kept = self._kept(opened)
        waiting = _to_ask(plan, opened, kept)
        self._begin(plan, opened, waiting)
        answers = dict(opened.answers)
        for answer, update_kept in self._collect(plan, waiting, model):
            answers[answer.site] = answer
            if update_kept is not None:
                kept[answer.site] = update_kept
        counted = self._decide(plan.number, opened, kept)
        result = aggregate_round(
            model.student,
            model.teacher,
            [_vote(site, spooled) for site, spooled in counted.items()],
            state,
            self.recipe.federation,
            lambda num_steps: log_momentum(self.recipe, plan.number, num_steps),
            in_place=True,  # the checkpoint of the round before is the way back
        )
        return self._ended(plan.number, result, answers, time.monotonic() - started)

    def _kept(self, opened: OpenRound) -> dict[str, SpooledUpdate]:
        """Updates that an earlier process accepted and that lie whole in the spool, by site."""
        found = {site: self.spool.find(opened.number, site, digest) for site, digest in opened.updates().items()}
        return {site: spooled for site, spooled in found.items() if spooled is not None}

    def _begin(self, plan: RoundPlan, opened: OpenRound, waiting: Mapping[str, int | None]) -> None:
        """Put the start on record, unless it stands there already with all who are asked."""
        if opened.asked and waiting.keys() <= set(opened.asked):
            return
        self.record.write(
            RoundStarted(
                round=plan.number,
                sites=sorted({*opened.asked, *waiting}),
                passed_over=list(plan.passed_over),
                deadline_s=plan.deadline_s,
            )
        )

    def _collect(
        self, plan: RoundPlan, waiting: Mapping[str, int | None], model: GlobalModel
    ) -> Iterator[tuple[SiteAnswered, SpooledUpdate | None]]:
        """Send the tasks; judge and record each answer when it comes, and name those that did not come."""
        for site in sorted(site for site, node in waiting.items() if node is None):
            gone = Verdict(outcome=LATE, reason="it was not there when the run went on")
            yield self._note(plan.number, site, gone, Exchanged(node=0, site=site, round=plan.number, fate=Fate.late))
        nodes = sorted(node for node in waiting.values() if node is not None)
        tasks = self._tasks(plan, nodes, model)
        whole: dict[int, Task] = {node: asked.task for node, asked in tasks.items()}
        tasks = {node: replace(asked, task=without_values(asked.task)) for node, asked in tasks.items()}
        for came in self.ask(whole, plan.deadline_s):
            yield self._note(plan.number, came.site, self._judge(tasks[came.node], came), came)

    def ask(self, tasks: MutableMapping[int, Task], deadline_s: float | None = None) -> Iterator[Exchanged]:
        """Send tasks and yield what becomes of each; what comes of earlier rounds meanwhile is put on record and kept out.

        Args:
            tasks: node -> task, all of one round; each is taken out as it is packed.
            deadline_s: None: as long as the recipe allows a round.
        """
        federation = self.recipe.federation
        longest_s = federation.round_deadline_s if deadline_s is None else deadline_s
        for came in exchange(self.post, tasks, self.spool, key=self.key, federation=federation, deadline_s=longest_s):
            if came.fate is not Fate.overdue:
                yield came
            elif self._was_late(came):  # in its round's training, not in an evaluation
                self._note(came.round, came.site, Verdict(outcome=OVERDUE, reason=_overdue(came)), came)

    def _was_late(self, came: Exchanged) -> bool:
        past = self.record.attendance.finished().get(came.round)
        answer = past.answers.get(came.site) if past else None
        return answer is not None and answer.outcome == LATE

    def as_received(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the sites will decode of parameters that are sent to them."""
        return as_received(tensors, self.recipe.federation.wire.down)

    def _tasks(self, plan: RoundPlan, nodes: Sequence[int], model: GlobalModel) -> dict[int, Asked]:
        """Node -> its task; the tensors are those that the sites will decode."""
        sent = GlobalModel(student=self.as_received(model.student), teacher=self.as_received(model.teacher))
        recipe = recipes.to_yaml(self.recipe)
        return {node: self._task(plan.number, sent, plan.sites[node], recipe) for node in nodes}

    def _task(self, number: int, sent: GlobalModel, site: JoinAnswer, recipe: str) -> Asked:
        """Only the groups that the site needs: trunk, heads and its organs."""
        groups = (*SHARED_GROUPS, *site.organs)
        voted = self.record.attendance.voted(site.site, before=number)
        task = TrainTask(
            run=self.run,
            round=number,
            site=site.site,
            recipe=recipe,
            student=keep_groups(sent.student, groups),
            teacher=keep_groups(sent.teacher, groups),
            voted={group: voted[group] for group in sorted(voted) if group in groups},
            ledger_witness=self.record.attendance.ledger_witness(site.site, before=number),
        )
        digest = task.digest()
        return Asked(task=task.signed(sign(self.key, digest)), site=site, digest=digest)

    def _judge(self, asked: Asked, came: Exchanged) -> Verdict:
        """Whether an answer counts."""
        if came.fate is not Fate.answered:
            return Verdict(outcome=came.fate.value, reason=one_line(came.reason))
        answer = came.answer
        if isinstance(answer, Refusal):
            failed = answer.code.startswith("site_")  # of an error there; other codes are considered refusals
            reason = one_line(f"{answer.code}: {answer.reason}")
            return Verdict(outcome="failed" if failed else "refused", reason=reason)
        assert isinstance(answer, SiteUpdate)  # the exchange lets no other answer to a TrainTask pass
        assert came.spooled is not None
        if wrong := self._why_left_out(asked, answer, came.spooled):
            return Verdict(outcome=LEFT_OUT, reason=wrong, update=answer)
        objective = self.recipe.pretrain.objective
        if answer.metrics and (collapsed := collapse_reason(answer.metrics, objective)):
            return Verdict(outcome=LEFT_OUT, reason=collapsed, update=answer, collapsed=True)
        return Verdict(outcome=ACCEPTED, update=answer, kept=came.spooled)

    def _why_left_out(self, asked: Asked, answer: SiteUpdate, spooled: SpooledUpdate) -> str | None:
        return check_update(
            answer,
            spooled.deltas,
            run=asked.task.run,
            round=asked.task.round,
            site=asked.task.site,
            task_digest=asked.digest,
            expected={name: tensor.shape for name, tensor in asked.task.student.items()},
            organs=asked.site.organs,
            max_delta_norm=self.recipe.federation.max_delta_norm,
            max_steps=self.recipe.pretrain.steps_per_round,
            private_names=private_names(asked.task, asked.site, answer, self.recipe),
        )

    def _note(
        self, number: int, site: str, verdict: Verdict, came: Exchanged
    ) -> tuple[SiteAnswered, SpooledUpdate | None]:
        """Put one answer on record; what is accepted lies in the spool by then."""
        answer = verdict.update if verdict.outcome == ACCEPTED else None
        spent = told_spent(verdict.update) if verdict.update else None  # also by an update that does not count
        event = SiteAnswered(
            round=number,
            site=site,
            outcome=verdict.outcome,
            reason=verdict.reason,
            seconds=came.seconds,
            bytes_down=came.bytes_down,
            bytes_up=came.bytes_up,
            num_subjects=answer.num_subjects if answer else 0,
            organ_subjects=answer.organ_subjects if answer else {},
            num_steps=answer.num_steps if answer else 0,
            metrics=asdict(answer.metrics) if answer and answer.metrics else {},
            audit_head=one_line(verdict.update.audit_head) if verdict.update else "",
            collapsed=verdict.collapsed,
            update_digest=verdict.kept.digest if verdict.kept else "",
            epsilon=spent.epsilon if spent else None,
            epsilon_delta=spent.delta if spent else None,
            epsilon_budget=spent.budget if spent else None,
            ledger_head=spent.ledger_head if spent else "",
        )
        self.record.write(event)
        if verdict.outcome != ACCEPTED:
            log.warning("round %d: %s %s: %s", number, site, verdict.outcome.replace("_", " "), verdict.reason)
        return event, verdict.kept

    def _decide(self, number: int, opened: OpenRound, kept: Mapping[str, SpooledUpdate]) -> dict[str, SpooledUpdate]:
        """The answers that count, on record before any of them does; none when they are too few."""
        enough = len(kept) >= self.recipe.federation.min_sites
        counted = {site: kept[site] for site in sorted(kept)} if enough else {}
        digests = {site: spooled.digest for site, spooled in counted.items()}
        if opened.accepted is None or dict(opened.accepted) != digests:
            self.record.write(AnswersAccepted(round=number, updates=digests))
        return counted

    def _ended(self, number: int, result: RoundResult, answers: dict[str, SiteAnswered], seconds: float) -> EndedRound:
        model = GlobalModel(student=result.student, teacher=result.teacher)
        finished = RoundFinished(
            round=number,
            seconds=seconds,
            weights=result.weights,
            unchanged_groups=told_unchanged(result.unchanged, self.recipe),
            delta_norm=result.delta_norm,
            means={group: mean.value for group, mean in result.means.items()},
            shortened=result.shortened,
            model_digest=model.digest(),
            coverage=latest_coverage(
                self.record.attendance,
                self.recipe,
                number,
                {group: list(sites) for group, sites in result.weights.items()},
            ),
        )
        return EndedRound(model=model, state=result.state, answers=answers, finished=finished)


def _to_ask(plan: RoundPlan, opened: OpenRound, kept: Mapping[str, SpooledUpdate]) -> dict[str, int | None]:
    """Site -> its node, None where it is not there: those on whom nothing was said, and those whose update was lost."""
    there = {site.site: node for node, site in plan.sites.items()}
    lost = opened.updates().keys() - kept.keys()
    silent = () if opened.accepted is not None else ({*opened.asked, *there} - opened.answers.keys())
    return {site: there.get(site) for site in sorted({*lost, *silent})}


def _vote(site: str, spooled: SpooledUpdate) -> Vote:
    answer = spooled.update
    return Vote(
        site=site,
        deltas=spooled.deltas,
        num_subjects=answer.num_subjects,
        organ_subjects=answer.organ_subjects,
        num_steps=answer.num_steps,
    )


def _overdue(came: Exchanged) -> str:
    return f"its answer came after {came.seconds:.0f} s, when the round was over, and was kept out"
