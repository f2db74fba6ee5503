"""A record, read as history: who joined, who was asked, what each answered, and the series that figures are drawn from.

The record is a list of events in the order in which they happened; a reader asks by round, site and organ. This room
turns the one into the other and computes nothing beyond a weighted mean. It takes records as they come: killed in the
middle of a round, resumed, without a start or an end, with numbers that are not numbers.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from panfm.errors import DataError
from panfm.groups import SHARED_GROUPS
from panfm.organs import SEVEN_ORGANS
from panfm.reporting.record import (
    Event,
    ModelEvaluated,
    ProbeTable,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteAnswered,
    SiteEvaluated,
    SiteJoined,
    SiteLeft,
    SiteRejected,
    TrainerAudited,
    events_of,
    read_record,
)

Series = dict[int, float]
"""Round -> value; rounds without a finite value are absent."""

_LARGEST = 1e15
"""A figure beyond this is a defect of the sender and is treated as missing: it would only hide the others."""

ACCEPTED = "accepted"
NO_ANSWER = "no answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """What happened in one run, by round, site and organ."""

    name: str
    starts: tuple[RunStarted, ...]
    """One: a process that goes on with a run says so in `resumes`."""
    resumes: tuple[RunResumed, ...]
    """One per process that went on with the run."""
    finish: RunFinished | None
    """None while the run goes on, or when it was killed."""
    settings: dict[str, Any]
    """The recipe, parsed; empty where it cannot be read."""
    organs: tuple[str, ...]
    """In the order of the study's vocabulary."""
    sites: tuple[str, ...]
    """Every site that joined, was asked or answered; sorted."""
    joined: dict[str, SiteJoined]
    rejected: tuple[SiteRejected, ...]
    left: tuple[SiteLeft, ...]
    asked: dict[int, tuple[str, ...]]
    """Round -> sites that were sent a task."""
    answers: dict[tuple[int, str], SiteAnswered]
    """(round, site) -> the answer, by round and then by site; after a resume the later one."""
    averages: dict[int, RoundFinished]
    probes: tuple[ProbeTable, ...]
    model_evaluations: tuple[ModelEvaluated, ...]
    audits: tuple[TrainerAudited, ...]
    reports: dict[tuple[int, str], SiteEvaluated]
    """(round, site) -> what became of its part in the evaluation after that round, by round and then by site."""
    evaluations: dict[int, RoundEvaluated]
    first_time: str
    """UTC, ISO 8601; empty where the record tells none."""
    last_time: str

    @property
    def start(self) -> RunStarted | None:
        """What the latest process said of the run; None when the record holds no start."""
        return self.starts[-1] if self.starts else None

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds that anything is known of, in order."""
        return tuple(sorted({*self.asked, *self.averages, *(number for number, _ in self.answers)}))

    @property
    def groups(self) -> tuple[str, ...]:
        """Parameter groups: the shared ones, then the organs'."""
        return (*SHARED_GROUPS, *self.organs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One thing that did not count, and why."""

    who: str
    """A site or a group."""
    what: str
    rounds: tuple[int, ...]
    """Empty: before the first round."""
    reason: str


def read_history(run_folder: Path) -> RunHistory:
    """The history of the run in that folder.

    Raises: DataError when there is no record, or a line of it is damaged.
    """
    path = run_folder / "record.jsonl"
    try:
        events = list(read_record(path))
    except (KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(
            f"a line of {path} is not an event of a run ({error}); restore the file from a copy, or update panfm"
        ) from error
    first_time, last_time = _times(path)
    return history_of(events, name=run_folder.resolve().name, first_time=first_time, last_time=last_time)


def history_of(events: Sequence[Event], *, name: str, first_time: str = "", last_time: str = "") -> RunHistory:
    """The events of a record by round, site and organ; `name` stands in where the record holds no start."""
    starts = tuple(events_of(RunStarted, list(events)))
    settings = _settings(starts[-1].recipe) if starts else {}
    joined = {event.site: event for event in events_of(SiteJoined, list(events))}
    asked = {event.round: tuple(event.sites) for event in events_of(RoundStarted, list(events))}
    answers = {(event.round, event.site): event for event in events_of(SiteAnswered, list(events))}
    reporting = {event.site for event in events_of(SiteEvaluated, list(events))}
    return RunHistory(
        name=starts[-1].run if starts else name,
        starts=starts,
        resumes=tuple(events_of(RunResumed, list(events))),
        finish=_finish(events),
        settings=settings,
        organs=_organs(settings, starts, joined.values(), answers.values()),
        sites=tuple(
            sorted(
                {*joined, *reporting, *(site for _, site in answers), *(s for sites in asked.values() for s in sites)}
            )
        ),
        joined=joined,
        rejected=tuple(events_of(SiteRejected, list(events))),
        left=tuple(events_of(SiteLeft, list(events))),
        asked=asked,
        answers=dict(sorted(answers.items())),
        averages={event.round: event for event in events_of(RoundFinished, list(events))},
        probes=tuple(events_of(ProbeTable, list(events))),
        model_evaluations=tuple(events_of(ModelEvaluated, list(events))),
        audits=tuple(events_of(TrainerAudited, list(events))),
        reports=dict(sorted(((e.round, e.site), e) for e in _standing(events) if isinstance(e, SiteEvaluated))),
        evaluations={e.round: e for e in _standing(events) if isinstance(e, RoundEvaluated)},
        first_time=first_time,
        last_time=last_time,
    )


def finite(value: object) -> float | None:
    """The value as a number, or None when it is none, not finite, or beyond all sense."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) < _LARGEST else None


def accepted(history: RunHistory) -> list[SiteAnswered]:
    """The answers that counted, by round and then by site."""
    return [answer for _, answer in history.answers.items() if answer.outcome == ACCEPTED]


def site_series(history: RunHistory, site: str, metric: str) -> Series:
    """One site's value of a scalar metric in the rounds in which it was accepted."""
    return _series(history, site, lambda answer: answer.metrics.get(metric))


def organ_series(history: RunHistory, metric: str, organ: str) -> dict[str, Series]:
    """Site -> round -> value of a metric of one organ; only sites that told any."""
    series = {site: _series(history, site, lambda answer: _of(answer, metric, organ)) for site in history.sites}
    return {site: values for site, values in series.items() if values}


def organ_mean(history: RunHistory, metric: str, organ: str) -> Series:
    """Mean over the sites that hold the organ, weighted by the subjects that had it in that round."""
    return _weighted_by_round(
        (answer.round, _of(answer, metric, organ), answer.organ_subjects.get(organ)) for answer in accepted(history)
    )


def site_mean(history: RunHistory, metric: str) -> Series:
    """Mean of a scalar metric over the sites that told it, weighted by the subjects that they trained on."""
    return _weighted_by_round(
        (answer.round, answer.metrics.get(metric), answer.num_subjects) for answer in accepted(history)
    )


def held_subjects(history: RunHistory, site: str, organ: str) -> int | None:
    """Subjects of the site with that organ; 0 where it holds none, None where it holds some and does not say how many.

    What the site said when it joined counts first, then the last round in which it said how many it trained on.
    """
    told = history.joined.get(site)
    if told is not None and organ in told.num_subjects:
        return told.num_subjects[organ]
    trained = [answer.organ_subjects[organ] for answer in _of_site(history, site) if organ in answer.organ_subjects]
    if trained:
        return trained[-1]
    return None if told is not None and organ in told.organs else 0


def outcome(history: RunHistory, number: int, site: str) -> str:
    """What became of the site's task in that round; empty when it was not asked, or the round is not over."""
    answer = history.answers.get((number, site))
    if answer is not None:
        return answer.outcome
    over = number in history.averages or history.finish is not None
    return NO_ANSWER if over and site in history.asked.get(number, ()) else ""


def site_troubles(history: RunHistory) -> list[Trouble]:
    """Every site that was rejected, left, refused, failed, was late, left out or silent, or told what is no number.

    Equal reasons of a site stand in one entry.
    """
    rejected = [Trouble(who=r.site, what="rejected", rounds=(), reason=r.reason) for r in history.rejected]
    gone = "it was no longer connected before the round began"
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for event in history.left:
        reasons.setdefault((event.site, "gone", gone), []).append(event.round)
    for number in history.rounds:
        for site in history.sites:
            what = outcome(history, number, site)
            if what not in (ACCEPTED, ""):
                answer = history.answers.get((number, site))
                reasons.setdefault((site, what, answer.reason if answer else ""), []).append(number)
    for answer in accepted(history):
        if broken := _broken_metrics(answer):
            reason = f"the update counted, but {', '.join(broken)} held what is no finite number and is not shown"
            reasons.setdefault((answer.site, "told no number", reason), []).append(answer.round)
    return rejected + [
        Trouble(who=site, what=what, rounds=tuple(numbers), reason=reason)
        for (site, what, reason), numbers in reasons.items()
    ]


def evaluation_troubles(history: RunHistory) -> list[Trouble]:
    """Every site whose report on a model did not count; equal reasons of a site stand in one entry."""
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for (number, site), report in history.reports.items():
        if report.outcome != ACCEPTED:
            reasons.setdefault((site, report.outcome, report.reason), []).append(number)
    return [
        Trouble(who=site, what=what, rounds=tuple(numbers), reason=reason)
        for (site, what, reason), numbers in reasons.items()
    ]


def best_round(history: RunHistory) -> int | None:
    """The best round by the recipe's rule, as of the last evaluation; None where there is none."""
    return history.evaluations[max(history.evaluations)].best_round if history.evaluations else None


def relative_loss(metrics: Mapping[str, Any]) -> float | None:
    """Loss of hidden patches over that of the best constant answer; None where a site tells no such losses."""
    patch, constant = finite(metrics.get("loss_patch")), finite(metrics.get("collapse_loss"))
    return patch / constant if patch is not None and constant else None


def held_out_series(history: RunHistory, tell: Callable[[Mapping[str, Any]], object]) -> dict[str, Series]:
    """A figure of the evaluations, picked from metrics: "" -> round -> that of all sites, then site -> round -> its own."""
    values: dict[str, dict[int, float | None]] = {
        "": {number: finite(tell(told.metrics)) for number, told in sorted(history.evaluations.items())}
    }
    for (number, site), report in history.reports.items():
        if report.outcome == ACCEPTED:
            values.setdefault(site, {})[number] = finite(tell(report.metrics))
    known = {who: {n: v for n, v in series.items() if v is not None} for who, series in values.items()}
    return {who: series for who, series in known.items() if series}


def unchanged_groups(history: RunHistory) -> list[Trouble]:
    """Groups that stayed as they were, with the reason; equal reasons of a group joined."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for number, average in sorted(history.averages.items()):
        for group, reason in average.unchanged_groups.items():
            reasons.setdefault((group, reason), []).append(number)
    return [
        Trouble(who=group, what="unchanged", rounds=tuple(numbers), reason=reason)
        for (group, reason), numbers in reasons.items()
    ]


def in_ranges(rounds: Iterable[int]) -> str:
    """Rounds as people write them: 1, 3 to 7, 9."""
    runs: list[list[int]] = []
    for number in sorted(rounds):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [(run, " to " if len(run) > 2 else ", ") for run in runs]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}{joint}{run[-1]}" for run, joint in words)


def _series(history: RunHistory, site: str, pick: Callable[[SiteAnswered], object]) -> Series:
    values = {answer.round: finite(pick(answer)) for answer in _of_site(history, site) if answer.outcome == ACCEPTED}
    return {number: value for number, value in values.items() if value is not None}


def _of_site(history: RunHistory, site: str) -> list[SiteAnswered]:
    return [answer for (_, who), answer in history.answers.items() if who == site]


def _of(answer: SiteAnswered, metric: str, organ: str) -> object:
    by_organ = answer.metrics.get(metric)
    return by_organ.get(organ) if isinstance(by_organ, Mapping) else None


def _broken_metrics(answer: SiteAnswered) -> list[str]:
    """Names of the metrics that hold something else than finite numbers or None."""
    values = {name: v.values() if isinstance(v, Mapping) else (v,) for name, v in answer.metrics.items()}
    return sorted(name for name, of in values.items() if any(v is not None and finite(v) is None for v in of))


def _weighted_by_round(values: Iterable[tuple[int, object, object]]) -> Series:
    by_round: dict[int, list[tuple[float, float]]] = {}
    for number, value, weight in values:
        if (known := finite(value)) is not None:
            by_round.setdefault(number, []).append((known, finite(weight) or 0.0))
    return {number: _weighted_mean(pairs) for number, pairs in by_round.items()}


def _weighted_mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Plain mean where nobody says how many subjects stand behind a value."""
    total = sum(weight for _, weight in pairs)
    if total <= 0:
        return sum(value for value, _ in pairs) / len(pairs)
    return sum(value * weight for value, weight in pairs) / total


def _standing(events: Sequence[Event]) -> list[SiteEvaluated | RoundEvaluated]:
    """The events of evaluations that stand: a run that went on from a round made void what was said of later models."""
    stand: list[SiteEvaluated | RoundEvaluated] = []
    for event in events:
        if isinstance(event, RunResumed):
            stand = [earlier for earlier in stand if earlier.round <= event.rounds_done]
        elif isinstance(event, SiteEvaluated | RoundEvaluated):
            stand.append(event)
    return stand


def _finish(events: Sequence[Event]) -> RunFinished | None:
    """The end of the run, unless another process started it again afterwards."""
    finish: RunFinished | None = None
    for event in events:
        if isinstance(event, RunStarted | RunResumed):
            finish = None
        elif isinstance(event, RunFinished):
            finish = event
    return finish


def _settings(recipe: str) -> dict[str, Any]:
    """The recipe as nested values; empty when it is no YAML: the report then shows the text alone."""
    try:
        values = OmegaConf.to_container(OmegaConf.create(recipe))
    except Exception:  # a YAML parser has many ways to fail, and none of them may cost the reader the report
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _organs(
    settings: Mapping[str, Any],
    starts: Sequence[RunStarted],
    joined: Iterable[SiteJoined],
    answers: Iterable[SiteAnswered],
) -> tuple[str, ...]:
    """The vocabulary of the recipe, then of the parameter groups, then whatever else a site named."""
    vocabulary = settings.get("organs")
    ordered = list(vocabulary) if isinstance(vocabulary, Mapping) else []
    ordered += list(starts[-1].group_parameters) if starts else []
    named = {organ for site in joined for organ in site.organs} | {o for a in answers for o in a.organ_subjects}
    ordered += [organ for organ in SEVEN_ORGANS if organ in named] + sorted(named)
    return tuple(dict.fromkeys(str(organ) for organ in ordered if organ not in SHARED_GROUPS))


def _times(path: Path) -> tuple[str, str]:
    """The times of the first and of the last whole line."""
    stamps = []
    for line in path.read_text().split("\n"):
        try:
            stamps.append(str(json.loads(line)["time"]))
        except (ValueError, KeyError, TypeError):
            continue  # a half-written last line; read_record has judged the others
    return (stamps[0], stamps[-1]) if stamps else ("", "")
