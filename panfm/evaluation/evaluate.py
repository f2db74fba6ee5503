"""Everything that is asked of a frozen model at once: what it knows, what it loses with organs, and what it leans on.

Probes see fit subjects only; test subjects are read once. Sweep and contributions are of the test subjects that have all
organs, the same ones for every organ set. What could not be asked is said in `notes` and not left out in silence.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Recipe
from panfm.errors import ConfigError, DataError
from panfm.evaluation.cohort import Cohort, embed_cohort
from panfm.evaluation.neighbours import neighbour_scores
from panfm.evaluation.organ_attention import OrganAttention, organ_attention
from panfm.evaluation.organ_sets import OrganSet, all_sets, complete_subjects, embed_sets
from panfm.evaluation.probes import Floats, fit_ridge, ridge_scores
from panfm.evaluation.resampling import (
    Counted,
    auprc,
    auroc,
    draw_counts,
    estimate,
    macro,
    mean_absolute_error,
    r2,
)
from panfm.evaluation.result_rows import (
    CHANCE,
    Row,
    attention_rows,
    contribution_rows,
    robustness_rows,
    set_rows,
    sweep_rows,
    told,
)
from panfm.evaluation.site_gap import site_gap
from panfm.evaluation.sweep import SweepValues, sweep_values
from panfm.evaluation.targets import Target, headline, not_asked, targets_of
from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream

DOMINANT = ("heart", "adipose")
"""Organs on which naive training was found to lean (the abstract of Pan-FM)."""

LINEAR, NEAREST, PRESENCE = "linear probe", "k-NN", "presence alone"
FEWEST_FITTED = 20
"""Complete fit subjects below which no probe is fitted for each set."""
OnProgress = Callable[[str, int, int], None]
"""Called with (what is being done, done, in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an evaluation is made."""

    resamples: int = 1000
    """Bootstrap resamples of the test subjects."""
    seed: int = 0
    """Of resamples, noise and the choice of subjects for the sweep."""
    sweep_subjects: int = 0
    """Most complete test subjects that are swept, chosen by the seed; 0: all."""
    refit: bool = False
    """Also fit a probe for each organ set, on fit subjects seen through the same set: what the organs tell, where the probe
    that was fitted once shows what a deployed one loses. Costs as much again for the fit subjects."""
    dominant: tuple[str, ...] = DOMINANT
    device: str = "cpu"


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """What was found of one model; its tables are the fields of `panfm.reporting.record.ModelEvaluated` of these names."""

    organs: list[str]
    num_fit: int
    num_test: int
    num_swept: int = 0
    scores: list[Row] = field(default_factory=list)
    """probe, target, metric, value, low, high, chance, positives, known."""
    sweep: list[Row] = field(default_factory=list)
    """probe, target, missing, sets, mean, low, high, worst, worst_low, worst_high, worst_set."""
    robustness: list[Row] = field(default_factory=list)
    """probe, target, quantity, value, low, high, set."""
    contributions: list[Row] = field(default_factory=list)
    """probe, target, organ, shapley, low, high, alone, lost_without."""
    attention: list[Row] = field(default_factory=list)
    """organ, share, lift, noise_share, drop, low, high, fell."""
    sites: list[Row] = field(default_factory=list)
    """target, labels, site, subjects, value, low, high."""
    organ_sets: list[Row] = field(default_factory=list)
    """probe, target, organs, missing, value, low, high."""
    notes: list[str] = field(default_factory=list)
    resampled: dict[tuple[str, str], SweepValues] = field(default_factory=dict)
    """(probe, target) -> each set's resamples: of models that one plan tested on one cohort, differences are paired."""

    def tables(self) -> dict[str, Any]:
        """All fields that JSON can say, which are all but `resampled`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "resampled"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A model, two cohorts, and what is asked of them."""

    parameters: Mapping[str, Tensor]
    recipe: Recipe
    fit: Cohort
    test: Cohort
    plan: Plan
    targets: tuple[Target, ...]
    columns: tuple[str, ...]
    """Every label column of the targets."""
    counts: Floats
    """[R, test subjects]."""

    @property
    def fit_labels(self) -> Floats:
        return np.stack([self.fit.labels[column] for column in self.columns])


def evaluate(
    parameters: Mapping[str, Tensor],
    recipe: Recipe,
    fit: Cohort,
    test: Cohort,
    plan: Plan,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Evaluation:
    """All tables of a model.

    Args:
        parameters: of the teacher, by name.
        fit: subjects on which probes are fitted; complete or not.
        test: other subjects, of the same labels.
    Raises: ConfigError when a dominant organ is no organ; DataError when a probe would be tested on those who taught it.
    """
    _check_dominant(plan.dominant, recipe)
    _check_apart(fit, test)
    targets = targets_of(fit.labels, test.labels)
    asked = _Asked(
        parameters=parameters,
        recipe=recipe,
        fit=fit,
        test=test,
        plan=plan,
        targets=targets,
        columns=tuple(dict.fromkeys(column for target in targets for column in target.columns)),
        counts=draw_counts(len(test.site_of), stream(plan.seed, "bootstrap"), plan.resamples),
    )
    found = Evaluation(organs=list(test.organs), num_fit=len(fit.site_of), num_test=len(test.site_of))
    if left := not_asked(fit.labels, test.labels):
        found.notes.append(f"not asked, for too few subjects of either class on either side: {', '.join(left)}")
    if not targets:
        return found
    on_progress("embedding subjects", 0, 1)
    embedded = embed_cohort(parameters, recipe, fit, plan.device)
    _ask_probes(asked, embedded, found)
    on_progress("embedding subjects", 1, 1)
    _ask_complete(asked, embedded, found, on_progress)
    return found


def _check_dominant(dominant: Sequence[str], recipe: Recipe) -> None:
    """A misspelt organ would be left out in silence; one of the seven that the model does not know has nothing to take away."""
    known = tuple(dict.fromkeys((*recipe.organs, *SEVEN_ORGANS)))
    if unknown := [organ for organ in dominant if organ not in known]:
        raise ConfigError(f"dominant organs should be among {', '.join(known)}; got {', '.join(unknown)}")


def _check_apart(fit: Cohort, test: Cohort) -> None:
    if both := fit.people & test.people:
        raise DataError(
            f"{len(both)} subjects are among those who fit the probes and among those who test them, so the scores would say "
            "nothing; name two splits that share nobody"
        )


def _ask_probes(asked: _Asked, embedded: NDArray[np.float32], found: Evaluation) -> None:
    """Scores and sites."""
    test = embed_cohort(asked.parameters, asked.recipe, asked.test, asked.plan.device)
    presence = [_presence(cohort, asked.test.organs) for cohort in (asked.fit, asked.test)]
    by_probe = {
        LINEAR: ridge_scores(embedded, asked.fit_labels, test),
        NEAREST: neighbour_scores(embedded, asked.fit_labels, test),
        PRESENCE: ridge_scores(presence[0], asked.fit_labels, presence[1]),
    }
    for probe, scores in by_probe.items():
        said = dict(zip(asked.columns, scores, strict=True))
        for target in asked.targets:
            found.scores += _score_rows(probe, target, asked, said)
    if len(asked.test.parts) > 1:
        _ask_sites(asked, dict(zip(asked.columns, by_probe[LINEAR], strict=True)), found)


def _presence(cohort: Cohort, organs: Sequence[str]) -> Floats:
    """Presence of the organs, [n, organs]; 0 for an organ that nobody of the cohort has."""
    place = {organ: column for column, organ in enumerate(cohort.organs)}
    absent = np.zeros(len(cohort.site_of))
    return np.stack([cohort.presence[:, place[organ]] if organ in place else absent for organ in organs], axis=1)


def _score_rows(probe: str, target: Target, asked: _Asked, said: Mapping[str, Floats]) -> list[Row]:
    labels = [asked.test.labels[column] for column in target.columns]
    scores = [said[column] for column in target.columns]
    measures: dict[str, Counted] = (
        {"AUROC": auroc, "AUPRC": auprc} if target.is_class else {"R2": r2, "MAE": mean_absolute_error}
    )
    positives = [float(np.nanmean(label)) for label in labels]
    chance = {"AUROC": CHANCE, "AUPRC": float(np.mean(positives)), "R2": 0.0, "MAE": None}
    return [
        {
            "probe": probe,
            "target": target.name,
            "metric": metric,
            **told(estimate(macro(np.stack([m(y, s, asked.counts) for y, s in zip(labels, scores, strict=True)])))),
            "chance": chance[metric],
            "positives": None if target.is_macro or not target.is_class else int(np.nansum(labels[0])),
            "known": int(min(np.isfinite(label).sum() for label in labels)),
        }
        for metric, m in measures.items()
    ]


def _ask_sites(asked: _Asked, said: Mapping[str, Floats], found: Evaluation) -> None:
    site_of, names = asked.test.site_of, [part.site for part in asked.test.parts]
    for target in headline(asked.targets):
        gap = site_gap(target, asked.test.labels, said, asked.counts, site_of)
        if gap is None:
            found.notes.append(f"{target.name}: no two sites have cases of the same label, so there is no worst site")
            continue
        same: Row = {"target": target.name, "labels": len(gap.columns)}
        for site, value in gap.by_site.items():
            found.sites.append({**same, "site": names[site], "subjects": int((site_of == site).sum()), **told(value)})
        found.sites.append({**same, "site": f"mean minus {names[gap.worst]}", "subjects": None, **told(gap.gap)})


def _ask_complete(asked: _Asked, embedded: NDArray[np.float32], found: Evaluation, on_progress: OnProgress) -> None:
    """Sweep, contributions and attention, of those who have every organ."""
    places = _complete(asked.test, asked.plan)
    found.num_swept = sum(map(len, places))
    if not found.num_swept or len(asked.test.organs) < 2:
        found.notes.append(
            f"no sweep: it needs test subjects with all of two or more organs, and {found.num_swept} have all of "
            f"{', '.join(asked.test.organs)}"
        )
        return
    found.attention = attention_rows(_attention(asked, places), _counts_of_swept(asked, found.num_swept))
    sets = all_sets(asked.test.organs)
    seen = _embed_complete(asked, asked.test, places, sets, on_progress, "test subjects, every organ set")
    predict = fit_ridge(embedded, asked.fit_labels)
    sweeps = _sweeps(asked, places, sets, np.stack([predict(values) for values in seen]))
    _tell_sweeps("fitted once", sweeps, asked.plan.dominant, found)
    if asked.plan.refit and (own := _fit_complete(asked, found)):
        fitted = _embed_complete(asked, asked.fit, own, sets, on_progress, "fit subjects, every organ set")
        labels = asked.fit_labels[:, _rows_of(asked.fit, own)]
        scores = np.stack([ridge_scores(train, labels, test) for train, test in zip(fitted, seen, strict=True)])
        refitted = _sweeps(asked, places, sets, scores)
        _tell_sweeps("fitted for each set", refitted, asked.plan.dominant, found)


def _fit_complete(asked: _Asked, found: Evaluation) -> list[list[int]]:
    """Complete fit subjects of each site; empty, with a note, where they are too few to fit a probe."""
    own = [complete_subjects(part.dataset, asked.test.organs) for part in asked.fit.parts]
    number = sum(map(len, own))
    if number < FEWEST_FITTED:
        found.notes.append(
            f"no probe for each set: it needs {FEWEST_FITTED} fit subjects with all organs, got {number}"
        )
        return []
    found.notes.append(f"fitted for each set: on the {number} of {found.num_fit} fit subjects who have all organs")
    return own


def _complete(cohort: Cohort, plan: Plan) -> list[list[int]]:
    """Complete subjects of each site, of all sites together at most as many as the plan wants."""
    places = [complete_subjects(part.dataset, cohort.organs) for part in cohort.parts]
    everybody = [(site, place) for site, own in enumerate(places) for place in own]
    if not 0 < plan.sweep_subjects < len(everybody):
        return places
    chosen = stream(plan.seed, "swept subjects").choice(len(everybody), plan.sweep_subjects, replace=False)
    kept = {everybody[number] for number in chosen}
    return [[place for place in own if (site, place) in kept] for site, own in enumerate(places)]


def _rows_of(cohort: Cohort, places: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Rows of the cohort of these places of its sites."""
    starts = np.cumsum([0, *(len(part.dataset) for part in cohort.parts)])
    return np.concatenate([start + np.array(own, dtype=np.int64) for start, own in zip(starts, places, strict=False)])


def _embed_complete(
    asked: _Asked,
    cohort: Cohort,
    places: Sequence[Sequence[int]],
    sets: Sequence[OrganSet],
    on_progress: OnProgress,
    title: str,
) -> NDArray[np.float32]:
    """[S, n, 3E] of the complete subjects, site after site."""
    total, done = sum(map(len, places)), 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        on_progress(title, done, total)

    on_progress(title, 0, total)
    blocks = [
        embed_sets(
            asked.parameters, asked.recipe, part.dataset, own, sets, device=asked.plan.device, on_subjects=advance
        ).values
        for part, own in zip(cohort.parts, places, strict=True)
        if own
    ]
    return np.concatenate(blocks, axis=1)


def _attention(asked: _Asked, places: Sequence[Sequence[int]]) -> OrganAttention:
    organs, plan = asked.test.organs, asked.plan
    blocks = [
        organ_attention(asked.parameters, asked.recipe, part.dataset, own, organs, seed=plan.seed, device=plan.device)
        for part, own in zip(asked.test.parts, places, strict=True)
        if own
    ]
    return OrganAttention(
        organs=organs,
        share=np.concatenate([block.share for block in blocks]),
        lift=np.concatenate([block.lift for block in blocks]),
        share_of_noise=np.concatenate([block.share_of_noise for block in blocks]),
    )


def _counts_of_swept(asked: _Asked, number: int) -> Floats:
    return draw_counts(number, stream(asked.plan.seed, "bootstrap of the swept"), asked.plan.resamples)


def _sweeps(
    asked: _Asked, places: Sequence[Sequence[int]], sets: Sequence[OrganSet], scores: Floats
) -> dict[str, SweepValues]:
    """Headline target -> its sweep; `scores` [S, all columns, n]."""
    rows = _rows_of(asked.test, places)
    counts = _counts_of_swept(asked, len(rows))
    found = {}
    for target in headline(asked.targets):
        columns = [asked.columns.index(column) for column in target.columns]
        labels = np.stack([asked.test.labels[column][rows] for column in target.columns])
        found[target.name] = sweep_values(sets, scores[:, columns], labels, counts)
    return found


def _tell_sweeps(probe: str, sweeps: Mapping[str, SweepValues], dominant: Sequence[str], found: Evaluation) -> None:
    for target, sweep in sweeps.items():
        found.resampled[probe, target] = sweep
        same: Row = {"probe": probe, "target": target}
        found.sweep += [{**same, **row} for row in sweep_rows(sweep)]
        found.robustness += [{**same, **row} for row in robustness_rows(sweep, dominant)]
        found.contributions += [{**same, **row} for row in contribution_rows(sweep)]
        found.organ_sets += [{**same, **row} for row in set_rows(sweep)]
