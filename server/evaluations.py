"""What the sites said of a run's models so far, what it comes to, and which round is the best: a fold over the record.

The rule of the best round (the recipe's federation.evaluation.best_by): a round is the best when its score is better than that
of the best before it, each taken over the sites that reported in both, weighted by the held-out subjects that those sites told
in the later one. A round reported by other sites is so never better for having easier patients. A tie, no site in common, or
fewer reports than federation.min_sites leave the earlier round the best; the first round with enough reports and a score
begins. relative_loss and loss: lower is better; a probe: higher.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from panfm.config import EvaluationConfig, FederationConfig
from panfm.config.evaluation import LOSS, RELATIVE_LOSS
from panfm.reporting.record import Event, RoundEvaluated, RunResumed, SiteEvaluated

ACCEPTED = "accepted"

LASTING = ("task_not_allowed", "metrics_not_public", "none_held_out")
"""Codes of a refusal after which a site is not sent a model to evaluate again, unless the run is resumed."""

Score = Callable[[Mapping[str, Any]], float | None]
"""A site's metrics (`panfm.protocol.EvaluationMetrics` as a dict) -> one number; None where the site does not tell it."""


class Evaluations:
    """The evaluations of one run; `note` is the only way in which they change."""

    def __init__(self, federation: FederationConfig) -> None:
        self._federation = federation
        self._reports: dict[int, dict[str, SiteEvaluated]] = {}
        self._best: dict[int, int | None] = {}
        """Evaluated round -> the best round then."""
        self._unable: set[str] = set()

    def note(self, event: Event) -> None:
        """Take one event of the record into account; kinds that say nothing of evaluations are passed over."""
        if isinstance(event, SiteEvaluated) and event.outcome == ACCEPTED:
            self._reports.setdefault(event.round, {})[event.site] = event
        elif isinstance(event, SiteEvaluated) and event.reason.partition(":")[0] in LASTING:
            self._unable.add(event.site)
        elif isinstance(event, RoundEvaluated):
            counted = self._reports.get(event.round, {})
            self._reports[event.round] = {site: counted[site] for site in event.sites if site in counted}
            self._best[event.round] = event.best_round
        elif isinstance(event, RunResumed):
            self._void_after(event.rounds_done)

    @property
    def best_round(self) -> int | None:
        """The best round so far; None while there is none."""
        return self._best[max(self._best)] if self._best else None

    def can_ask(self, site: str) -> bool:
        """Whether the site has not said, since the run began or was resumed, that its policy or its table has no evaluation."""
        return site not in self._unable

    def is_due(self, number: int, rounds: int) -> bool:
        """Whether the model after that round of so many is to be evaluated, and has not been."""
        return self._federation.evaluation.is_due(number, rounds) and number not in self._best

    def summary(
        self, number: int, reports: Sequence[SiteEvaluated], *, model_digest: str, seconds: float
    ) -> RoundEvaluated:
        """What these reports come to.

        Args:
            number: the round after which the model stands.
            reports: accepted ones, one a site.
        """
        by_site = {report.site: report for report in sorted(reports, key=lambda report: report.site)}
        metrics = means(list(by_site.values()))
        return RoundEvaluated(
            round=number,
            sites=list(by_site),
            metrics=metrics,
            score=score_of(self._federation.evaluation)(metrics),
            best_round=self._best_with(number, by_site),
            model_digest=model_digest,
            seconds=seconds,
        )

    def _best_with(self, number: int, reports: Mapping[str, SiteEvaluated]) -> int | None:
        """The best round once these reports count."""
        config, best = self._federation.evaluation, self.best_round
        score = score_of(config)
        scored = {site: report for site, report in reports.items() if score(report.metrics) is not None}
        if not scored or len(reports) < self._federation.min_sites:
            return best
        if best is None:
            return number
        before = {s: r for s, r in self._reports.get(best, {}).items() if score(r.metrics) is not None}
        common = sorted(scored.keys() & before.keys())
        if not common:
            return best
        weights = [scored[site].num_subjects for site in common]
        now, then = (_weighted([score(of[site].metrics) for site in common], weights) for of in (scored, before))
        assert now is not None
        assert then is not None
        better = now < then if config.best_by in (RELATIVE_LOSS, LOSS) else now > then
        return number if better else best

    def _void_after(self, rounds_done: int) -> None:
        """The run went on from an earlier round: what was said of later models is said of others now."""
        self._unable.clear()
        self._reports = {number: kept for number, kept in self._reports.items() if number <= rounds_done}
        self._best = {number: best for number, best in self._best.items() if number <= rounds_done}


def evaluations_of(events: Iterable[Event], federation: FederationConfig) -> Evaluations:
    """The evaluations that a record tells."""
    evaluations = Evaluations(federation)
    for event in events:
        evaluations.note(event)
    return evaluations


def score_of(config: EvaluationConfig) -> Score:
    """What the rule of the best round compares."""
    if config.best_by == LOSS:
        return lambda metrics: metrics.get("loss")
    if config.best_by == RELATIVE_LOSS:
        return relative_loss
    return lambda metrics: metrics.get("probes", {}).get(config.best_by)


def relative_loss(metrics: Mapping[str, Any]) -> float | None:
    """Held-out loss of hidden patches over that of the best constant prediction: 1 has learned nothing, 0 everything.

    The plain loss falls when the targets collapse; this one does not, for the constant's falls with it. None without either.
    """
    patch, constant = metrics.get("loss_patch"), metrics.get("collapse_loss")
    return patch / constant if patch is not None and constant else None


def means(reports: Sequence[SiteEvaluated]) -> dict[str, Any]:
    """Means over sites: weighted by held-out subjects, and of what is by organ by those who have it.

    relative_loss is the ratio of the means, not the mean of ratios.
    """
    subjects = [report.num_subjects for report in reports]
    found: dict[str, Any] = {
        name: _weighted([report.metrics.get(name) for report in reports], subjects)
        for name in ("loss", "loss_patch", "loss_organ", "collapse_loss", "share_entropy")
    }
    found["relative_loss"] = relative_loss(found)
    for name in ("share", "lift"):
        found[name] = _by_key(reports, name, lambda report, organ: report.organ_subjects.get(organ, 0))
    found["probes"] = _by_key(reports, "probes", lambda report, _label: report.num_subjects)
    return found


def _by_key(
    reports: Sequence[SiteEvaluated], name: str, weight: Callable[[SiteEvaluated, str], int]
) -> dict[str, float]:
    keys = sorted({key for report in reports for key in report.metrics.get(name, {})})
    found = {
        key: _weighted(
            [report.metrics.get(name, {}).get(key) for report in reports], [weight(report, key) for report in reports]
        )
        for key in keys
    }
    return {key: value for key, value in found.items() if value is not None}


def _weighted(values: Sequence[float | None], weights: Sequence[int]) -> float | None:
    """Weighted mean over the values that are there; None where there is none, or none of weight."""
    told = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    total = sum(weight for _, weight in told)
    return math.fsum(value * weight for value, weight in told) / total if total else None
