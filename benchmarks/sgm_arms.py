"""The arms of `benchmarks/sgm.py`: who trains on whose scans under which organ masking, and what the result knows of diseases.

An arm is trained in this process: `train_round` at each hospital and `server.aggregation` between the rounds, as a study does
it; messages, policies and the wire (fp32) change no parameter and are left out. All arms share one machinery and one schedule:
pooled training is a study of one hospital that has everybody's scans, local-only training six studies of one hospital each. So
optimisers restart and teachers follow in the same way everywhere, and every trainer does equally many steps.

Legend: S organ sets (127), R rows of counts (1 + resamples), n test subjects (all, or those of the sweep), O organs, H hospitals.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.sgm_cohort import Generator, Judges, everybody, hospital, read_judges
from panfm import recipes
from panfm.config import OrganMaskConfig, OrganMaskRule, Precision, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.durable import write_file
from panfm.evaluation.organ_attention import evenness_of, organ_attention
from panfm.evaluation.organ_sets import OrganSet, all_sets, embed_sets
from panfm.evaluation.probes import Floats, fit_ridge
from panfm.evaluation.resampling import draw_counts
from panfm.evaluation.sweep import sweep_values
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.models.precision import computing_in
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.pretrain.schedules import log_momentum
from panfm.randomness import stream
from server.aggregation.next_model import aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, Vote
from server.rounds import GlobalModel
from server.study import first_model

JUDGED_IN = Precision.bf16
"""Precision in which embeddings are made: 0.57 of the time of fp32 on one core, and the same for every arm."""
CHANCE = 0.5
"""AUROC of a guess: what a model says of somebody of whom it can read no organ."""
POOLED_SITE = "everybody"


class Scheme(Enum):
    """Who trains together."""

    start = "start"
    """Nobody: the seeded initialisation itself."""
    pooled = "pooled"
    single = "single"
    """Seven models, each of one organ, on everybody's scans of it."""
    federated = "federated"
    blind = "blind"
    """Federated, but every hospital sends every organ's group, those that it does not have unchanged, and they are averaged by
    subjects: what FedAvg does that does not know of organs."""
    local = "local"
    """Six models, each of one hospital."""


class Masking(Enum):
    """How organs are hidden from the student."""

    none = "none"
    uniform = "uniform"
    """As often as lift."""
    uniform_as_threshold = "uniform_as_threshold"
    """As often as threshold, as that was measured."""
    threshold = "threshold"
    """Relative: 1.5 / organs present."""
    literal = "literal"
    """The skill card's: a share above 0.7, with a chance of 0.3."""
    lift = "lift"


RULES: Mapping[Masking, OrganMaskConfig] = {
    Masking.none: OrganMaskConfig(rule=OrganMaskRule.none),
    Masking.uniform: OrganMaskConfig(rule=OrganMaskRule.uniform),
    Masking.uniform_as_threshold: OrganMaskConfig(rule=OrganMaskRule.uniform),
    Masking.threshold: OrganMaskConfig(rule=OrganMaskRule.threshold),
    Masking.literal: OrganMaskConfig(
        rule=OrganMaskRule.threshold, threshold=0.7, threshold_absolute=True, threshold_probability=0.3
    ),
    Masking.lift: OrganMaskConfig(rule=OrganMaskRule.lift),
}
"""As the recipes ship them; nothing was tuned for this table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is."""

    runs: Path
    generator: Generator
    settings: tuple[str, ...]
    """Overrides of the recipe `demo`."""
    seeds: tuple[int, ...]
    """Of initial values and of every draw in training."""
    resamples: int
    attention_subjects: int
    """Test subjects whose attention is looked at."""
    sweep_subjects: int
    """Test subjects who are read through all 127 sets, which costs 64 passes over them; through complete organs, and through
    each hospital's, all are read."""
    device: str = "cpu"

    @property
    def cohort(self) -> Path:
        """Where the people are; another generator has other people."""
        return self.runs / self.generator.folder_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train, under one seed."""

    scheme: Scheme
    masking: Masking = Masking.none
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.scheme.value}-{self.masking.value}-{self.seed}"

    @property
    def pace_maker(self) -> Arm | None:
        """The arm whose measured rate of masking this one copies."""
        if self.masking is not Masking.uniform_as_threshold:
            return None
        return replace(self, masking=Masking.threshold)


IN_ORDER: tuple[tuple[Scheme, Masking], ...] = (
    (Scheme.start, Masking.none),
    (Scheme.pooled, Masking.none),
    (Scheme.pooled, Masking.lift),
    (Scheme.pooled, Masking.uniform),
    (Scheme.federated, Masking.lift),
    (Scheme.local, Masking.lift),
    (Scheme.pooled, Masking.threshold),
    (Scheme.federated, Masking.none),
    (Scheme.blind, Masking.lift),
    (Scheme.single, Masking.none),
    (Scheme.federated, Masking.uniform),
    (Scheme.pooled, Masking.uniform_as_threshold),
    (Scheme.local, Masking.none),
    (Scheme.federated, Masking.threshold),
    (Scheme.pooled, Masking.literal),
)
"""The most telling first."""


def all_arms(sizes: Sizes) -> list[Arm]:
    """The first arm under every seed, then the next."""
    return [Arm(scheme=scheme, masking=masking, seed=seed) for scheme, masking in IN_ORDER for seed in sizes.seeds]


def recipe_of(sizes: Sizes, arm: Arm, rate: float | None = None) -> Recipe:
    """What is trained, and how; `rate` is the one that the arm copies."""
    recipe = _without_masking(sizes.settings, arm.seed)
    organ_mask = RULES[arm.masking] if rate is None else replace(RULES[arm.masking], rate=rate)
    return replace(recipe, organs=sizes.generator.grids, pretrain=replace(recipe.pretrain, organ_mask=organ_mask))


@cache
def _without_masking(settings: tuple[str, ...], seed: int) -> Recipe:
    return recipes.recipe_of(recipes.load(["recipe=demo", f"seed={seed}", *settings]))


# ---- training ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Cost:
    """What training took and hid, summed over the trainers of an arm."""

    seconds: float = 0.0
    """Of processor time, in all steps of a round but its first, which also loads parts of torch and opens files."""
    steps: int = 0
    """Those steps."""
    scans: float = 0.0
    masked: float = 0.0
    device: str = "cpu"
    _last: float = 0.0

    def count_step(self, step: int, num_steps: int, loss: float) -> None:
        """Called by `train_round` after each step."""
        now = time.process_time()
        if step > 1:
            self.seconds += now - self._last
            self.steps += 1
        self._last = now

    def add(self, trained: TrainedRound) -> None:
        """Count one trainer's round; its rates of masking are weighted by who has the organ."""
        for organ, rate in trained.metrics.masked_rate.items():
            self.scans += trained.organ_subjects[organ] * trained.num_steps
            self.masked += rate * trained.organ_subjects[organ] * trained.num_steps

    @property
    def seconds_per_step(self) -> float:
        """NaN where nobody trained."""
        return self.seconds / self.steps if self.steps else math.nan

    @property
    def masked_share(self) -> float:
        """Share of the organs present that the student did not see."""
        return self.masked / self.scans if self.scans else 0.0


def conducted(
    recipe: Recipe, datasets: Mapping[str, SubjectDataset], cost: Cost, *, blind: bool = False
) -> GlobalModel:
    """The model after all rounds of a study of these hospitals."""
    model, state = first_model(recipe, ""), ServerState()
    for number in range(1, recipe.rounds + 1):
        votes = [_vote(site, model, dataset, recipe, number, cost) for site, dataset in datasets.items()]
        if blind:
            votes = [of_every_organ(vote, model.student, tuple(recipe.organs)) for vote in votes]
        result = aggregate_round(
            model.student, model.teacher, votes, state, recipe.federation, partial(log_momentum, recipe, number)
        )
        model, state = GlobalModel(student=result.student, teacher=result.teacher), result.state
    return model


def _vote(site: str, model: GlobalModel, dataset: SubjectDataset, recipe: Recipe, number: int, cost: Cost) -> Vote:
    """One hospital's round."""
    groups = (*SHARED_GROUPS, *dataset.organs)
    trained = train_round(
        keep_groups(model.student, groups),
        keep_groups(model.teacher, groups),
        dataset,
        recipe,
        site=site,
        round_number=number,
        device=cost.device,
        on_step=cost.count_step,
    )
    cost.add(trained)
    return Vote(
        site=site,
        deltas=DeltasInMemory(trained.deltas),
        num_subjects=trained.num_subjects,
        organ_subjects=trained.organ_subjects,
        num_steps=trained.num_steps,
    )


def of_every_organ(vote: Vote, student: Mapping[str, Tensor], organs: Sequence[str]) -> Vote:
    """The same vote by a hospital that sends everything, what it did not train as it came."""
    held = vote.deltas.names()
    unchanged = {name: torch.zeros_like(values) for name, values in student.items() if name not in held}
    trained = {name: vote.deltas.block(name, 0, student[name].numel()).reshape(student[name].shape) for name in held}
    return replace(
        vote,
        deltas=DeltasInMemory({**trained, **unchanged}),
        organ_subjects=dict.fromkeys(organs, vote.num_subjects),
    )


def uniform_rate(asked: float, organs_of: Sequence[frozenset[str]]) -> float:
    """The rate at which uniform dropout hides this share of the organs present, all but one of a subject at most.

    With n organs present the mean number hidden is n r - r^n: the binomial's, less the one that is spared when all were drawn.
    """
    present = np.array([len(own) for own in organs_of], dtype=np.float64)
    low, high = 0.0, 1.0
    for _ in range(50):
        rate = (low + high) / 2
        hidden = float((present * rate - rate**present).sum() / present.sum())
        low, high = (rate, high) if hidden < asked else (low, rate)
    return (low + high) / 2


def masked_share_of(place: Path) -> float:
    """What an arm hid, as it was measured."""
    with np.load(place) as kept:
        return float(kept["masked_share"])


@cache
def uniform_rate_of(sizes: Sizes, asked: float) -> float:
    """The same among the subjects that are pooled."""
    recipe = recipe_of(sizes, Arm(scheme=Scheme.pooled))
    return uniform_rate(asked, pooled_cohort(sizes, tuple(recipe.organs), recipe).organs_of)


# ---- judging ----------------------------------------------------------------------------------------------------------


Scores = Floats
"""What the probes say of the test subjects, [probe sets, organ sets, categories, n]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every arm is judged by."""

    recipe: Recipe
    judges: Judges
    sizes: Sizes
    counts: Mapping[int, Floats]
    """For all test subjects, and for those of the sweep: [R, n], the same for all arms, so that their differences are paired."""

    @property
    def organs(self) -> OrganSet:
        return tuple(self.recipe.organs)

    @property
    def hospitals(self) -> list[OrganSet]:
        """The organs of each hospital."""
        return [site.organs for site in self.sizes.generator.sites]

    @property
    def everybody(self) -> int:
        """All test subjects."""
        return len(self.judges.test.dataset)

    def scores(
        self, teacher: Mapping[str, Tensor], organs: OrganSet, sets: Sequence[OrganSet], subjects: int
    ) -> Scores:
        """Probes fitted on all of these organs, asked about each set of them, of the first so many test subjects."""
        fitted = self._embedded(teacher, self.judges.probe.dataset, [organs], len(self.judges.probe.dataset))[0]
        seen = self._embedded(teacher, self.judges.test.dataset, sets, subjects)
        probes = [fit_ridge(fitted[rows], labels) for rows, labels in self.judges.sets]
        return np.stack([[probe(of_set) for of_set in seen] for probe in probes])

    def of_whole(self, teacher: Mapping[str, Tensor], organs: OrganSet) -> Floats:
        """AUROC of all test subjects through these organs, by probes fitted through them, [R]."""
        values: Floats = self.auroc([organs], self.scores(teacher, organs, [organs], self.everybody))[0]
        return values

    def of_hospital(self, teacher: Mapping[str, Tensor], known: OrganSet) -> Floats:
        """AUROC of every set of all organs by a model that reads only those it knows; a guess where it reads none, [S, R]."""
        own = all_sets(known)
        scores = self.scores(teacher, known, own, self.sizes.sweep_subjects)
        values = dict(zip(own, self.auroc(own, scores), strict=True))
        guess = np.full(1 + self.sizes.resamples, CHANCE)
        read = [tuple(organ for organ in held if organ in known) for held in all_sets(self.organs)]
        return np.stack([values[held] if held else guess for held in read])

    def auroc(self, sets: Sequence[OrganSet], scores: Scores) -> Floats:
        """Macro AUROC of each set, mean over the probe sets, [S, R]."""
        subjects = scores.shape[-1]
        labels, counts = self.judges.test_labels[:, :subjects], self.counts[subjects]
        values: Floats = np.mean([sweep_values(sets, own, labels, counts).values for own in scores], axis=0)
        return values

    def attention(self, teacher: Mapping[str, Tensor], organs: OrganSet) -> dict[str, NDArray[np.float64]]:
        """Mean share of each of all organs, and the evenness of each subject's shares."""
        if len(organs) < 2:
            return {"share": np.array([float(organ in organs) for organ in self.organs]), "evenness": np.array(np.nan)}
        test = self.judges.test.dataset
        some, device = range(min(self.sizes.attention_subjects, len(test))), self.sizes.device
        found = organ_attention(teacher, self.recipe, test, some, organs, seed=0, device=device)
        share = dict(zip(organs, found.share.mean(0).tolist(), strict=True))
        return {
            "share": np.array([share.get(organ, 0.0) for organ in self.organs]),
            "evenness": np.array(evenness_of(found.share).mean()),
        }

    def _embedded(
        self, teacher: Mapping[str, Tensor], dataset: SubjectDataset, sets: Sequence[OrganSet], subjects: int
    ) -> NDArray[np.float32]:
        device = self.sizes.device
        with computing_in(JUDGED_IN, device):
            return embed_sets(teacher, self.recipe, dataset, range(subjects), sets, device=device).values


def judged(bench: Bench, teacher: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """One model of all organs."""
    sets = all_sets(bench.organs)
    values = bench.auroc(sets, bench.scores(teacher, bench.organs, sets, bench.sizes.sweep_subjects))
    return {
        "complete": bench.of_whole(teacher, bench.organs),
        "values": values,
        "by_hospital": np.stack([bench.of_whole(teacher, held) for held in bench.hospitals]),
        **bench.attention(teacher, bench.organs),
    }


def judged_local(bench: Bench, teachers: Sequence[Mapping[str, Tensor]]) -> dict[str, NDArray[np.float64]]:
    """A model of each hospital, which reads those of a subject's organs that it knows; the mean over the hospitals."""
    theirs = list(zip(teachers, bench.hospitals, strict=True))
    by_hospital = np.stack([bench.of_whole(teacher, held) for teacher, held in theirs])
    seen = [bench.attention(teacher, held) for teacher, held in theirs]
    return {
        "complete": by_hospital.mean(
            0
        ),  # of a complete subject, too, a hospital's model reads the organs that it knows
        "values": np.mean([bench.of_hospital(teacher, held) for teacher, held in theirs], axis=0),
        "by_hospital": by_hospital,
        "share": np.mean([one["share"] for one in seen], axis=0),
        "evenness": np.mean([one["evenness"] for one in seen]),
    }


def judged_single(bench: Bench, teachers: Sequence[Mapping[str, Tensor]]) -> dict[str, NDArray[np.float64]]:
    """A model of each organ: what their probes say is averaged over the organs that a subject has (late fusion)."""
    alone = np.stack(
        [
            bench.scores(own, (organ,), [(organ,)], bench.everybody)[:, 0]
            for own, organ in zip(teachers, bench.organs, strict=True)
        ]
    )

    def fused(sets: Sequence[OrganSet], subjects: int) -> Floats:
        members = [[bench.organs.index(organ) for organ in held] for held in sets]
        return bench.auroc(sets, np.stack([alone[places].mean(0) for places in members], axis=1)[..., :subjects])

    nobody = np.full(len(bench.organs), np.nan)
    return {
        "complete": fused([bench.organs], bench.everybody)[0],
        "values": fused(all_sets(bench.organs), bench.sizes.sweep_subjects),
        "by_hospital": fused(bench.hospitals, bench.everybody),
        "share": nobody,
        "evenness": np.array(np.nan),
    }


# ---- one arm ----------------------------------------------------------------------------------------------------------


def run_arm(sizes: Sizes, arm: Arm, place: Path, rate: float | None) -> None:
    """Train and judge; what was found goes into a file."""
    started = time.process_time()
    recipe, cost = recipe_of(sizes, arm, rate), Cost(device=sizes.device)
    torch.set_num_threads(recipe.threads)
    judges = read_judges(sizes.cohort, sizes.generator, recipe)
    counts = {
        subjects: draw_counts(subjects, stream(0, "benchmark of SGM", "bootstrap"), sizes.resamples)
        for subjects in (len(judges.test.dataset), sizes.sweep_subjects)
    }
    found = _found(Bench(recipe=recipe, judges=judges, sizes=sizes, counts=counts), arm, cost)
    content = io.BytesIO()
    np.savez(
        content,
        complete=found["complete"].astype(np.float32),
        values=found["values"].astype(np.float32),
        by_hospital=found["by_hospital"].astype(np.float32),
        share=found["share"],
        evenness=found["evenness"],
        seconds_per_step=cost.seconds_per_step,
        masked_share=cost.masked_share,
        seconds=time.process_time() - started,
    )
    place.parent.mkdir(parents=True, exist_ok=True)
    write_file(place, content.getvalue())


def _found(bench: Bench, arm: Arm, cost: Cost) -> dict[str, NDArray[np.float64]]:
    recipe, sizes = bench.recipe, bench.sizes
    if arm.scheme is Scheme.start:
        return judged(bench, first_model(recipe, "").teacher)
    if arm.scheme is Scheme.pooled:
        return judged(bench, conducted(recipe, {POOLED_SITE: pooled_cohort(sizes, bench.organs, recipe)}, cost).teacher)
    if arm.scheme is Scheme.single:
        cohorts = [{POOLED_SITE: pooled_cohort(sizes, (organ,), recipe)} for organ in bench.organs]
        return judged_single(bench, [conducted(recipe, cohort, cost).teacher for cohort in cohorts])
    sites = sizes.generator.sites
    datasets = {site.name: hospital(sizes.cohort, site.name, site.organs, recipe) for site in sites}
    if arm.scheme is Scheme.local:
        alone = [conducted(recipe, {site.name: datasets[site.name]}, cost).teacher for site in sites]
        return judged_local(bench, alone)
    return judged(bench, conducted(recipe, datasets, cost, blind=arm.scheme is Scheme.blind).teacher)


def pooled_cohort(sizes: Sizes, organs: OrganSet, recipe: Recipe) -> SubjectDataset:
    """Everybody's scans of these organs."""
    return everybody(sizes.cohort, sizes.generator.sites, organs, recipe)
