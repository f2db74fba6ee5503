"""What do two lying sites of eight do to the model, with each way to average? Held to: robust means lose at most 0.02 AUROC.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/byzantine.py [--quick]`; it prints the table and writes it to
`benchmarks/byzantine.md` (with --quick two rounds of a few steps, and it only prints).

Eight synthetic hospitals hold all seven organs, so that every group has eight voters, and run the rounds as in a rehearsal:
local training, then `aggregate_round`. They go on with a model that has learned from other subjects, so that there is
something to lose: from a seeded one, 60 steps gained nothing, and no lie could take it away. Two of them send, in every
round and for every group, what they learned turned round (sign flipped) or a hundred times as long, and stay below
`federation.max_delta_norm` with it. The probe is the macro AUROC over the disease categories of subjects that no site
trained on, from the teacher's frozen embeddings; differences from the honest run stand with the interval of a paired
bootstrap over test subjects. R2 of the age stands beside it, which training moves further than AUROC, and the untrained
model, which says how far down the probes could fall.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.machine import provenance
from panfm import recipes
from panfm.config import FederationConfig, GroupMean, Missingness, Recipe, RobustConfig
from panfm.data.dataset import SubjectDataset
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.errors import RunError
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.learning_check import HeldOut, read_held_out
from panfm.evaluation.probes import Floats, auc, bootstrap, interval, r2, ridge_scores
from panfm.models.build import initial_parameters
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.pretrain.schedules import log_momentum
from panfm.randomness import stream
from panfm.update import Tensors
from server.aggregation.next_model import aggregate_round
from server.aggregation.norm_bounds import delta_norm
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, Vote

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--quick" in sys.argv
SITES, LIARS = 8, ("site-2", "site-5")
SUBJECTS, PROBED, TESTED = (8, 24, 24) if QUICK else (32, 200, 400)
LEARNED, START_STEPS = (8, 2) if QUICK else (256, 240)
"""Subjects from whom the model had learned before, and in how many steps."""
ROUNDS, STEPS = (2, 1) if QUICK else (4, 10)
HELD_TO = 0.02

Attack = Callable[[Tensor], Tensor]
ATTACKS: dict[str, Attack] = {"sign flipped": lambda delta: -delta, "x100": lambda delta: 100 * delta}
MEANS: dict[str, RobustConfig] = {
    "plain mean": RobustConfig(),
    "plain mean, norms bounded to 1.5 of the past": RobustConfig(past_factor=1.5, max_norm=3.0),
    "coordinate median": RobustConfig(mean=GroupMean.median),
    "trimmed mean, 0.25": RobustConfig(mean=GroupMean.trimmed_mean),
}
PLAIN, UNTRAINED = "plain mean", "untrained model"
ROBUST = ("coordinate median", "trimmed mean, 0.25")


@dataclass(slots=True, kw_only=True)
class Study:
    """Hospitals, probe subjects, and what was already trained."""

    recipe: Recipe
    sites: dict[str, SubjectDataset]
    probe: HeldOut
    test: HeldOut
    first_round: dict[str, TrainedRound] = field(default_factory=dict)
    """Every run begins with the same model, so the first round is trained once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """How one run ended."""

    value: float
    """Macro AUROC; NaN where training diverged."""
    samples: Floats
    age: float = float("nan")
    """R2 of the age that a probe reads; more sensitive to what training taught than AUROC is."""
    longest: float = 0.0
    """Largest L2 norm that a liar sent of one group."""


def make_recipe() -> Recipe:
    """The demo's, with fewer steps, for there are twice as many sites."""
    return recipes.recipe_of(recipes.load(["recipe=demo", f"rounds={ROUNDS}", f"pretrain.steps_per_round={STEPS}"]))


def write_study(folder: Path) -> None:
    """Write and prepare everybody."""
    recipe = make_recipe()
    scanners = tuple(f"site-{i}" for i in range(SITES))
    others = [("before", LEARNED, ""), ("probe", PROBED, "probe"), ("test", TESTED, "test")]
    people = [*((site, SUBJECTS, "") for site in scanners), *others]
    first = 0
    for name, number, split in people:
        write_synthetic_site(
            folder / name,
            SyntheticSite(name=name, organs=SEVEN_ORGANS, num_subjects=number),
            seed=0,
            voxels=24,
            missingness=Missingness.mcar,
            missing_rate=0.0,
            first_subject=first,
            split=split,
            scanners=() if name in scanners else scanners,
        )
        prepare_store(folder / name, folder / name / "store", recipe.organs, recipe.prepare)
        first += number


def learn(folder: Path) -> None:
    """Train the model with which the sites go on."""
    recipe = recipes.recipe_of(recipes.load(["recipe=demo", "rounds=1", f"pretrain.steps_per_round={START_STEPS}"]))
    first = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    people = SubjectDataset(PreparedStore.open(folder / "before" / "store"), SEVEN_ORGANS, recipe.organs)
    trained = train_round(first, first, people, recipe, site="before", round_number=1)
    vote = Vote(
        site="before",
        deltas=DeltasInMemory(trained.deltas),
        num_subjects=trained.num_subjects,
        organ_subjects=trained.organ_subjects,
        num_steps=trained.num_steps,
    )
    result = aggregate_round(first, first, [vote], ServerState(), FederationConfig(), partial(log_momentum, recipe, 1))
    for part in ("student", "teacher"):
        save_file(getattr(result, part), folder / f"{part}.safetensors")


@cache
def open_study(folder: Path) -> Study:
    """What `write_study` wrote; once in each process."""
    recipe = make_recipe()
    stores = {site: PreparedStore.open(folder / site / "store") for site in (f"site-{i}" for i in range(SITES))}
    sites = {site: SubjectDataset(store, SEVEN_ORGANS, recipe.organs) for site, store in stores.items()}
    probe, test = (read_held_out([folder / split], recipe, split) for split in ("probe", "test"))
    return Study(recipe=recipe, sites=sites, probe=probe, test=test)


def finding(folder: Path, mean: str, attack: str) -> Finding:
    """How one run ends; no attack and no mean: how the model begins; `UNTRAINED`: without having learned before."""
    study, state, longest = open_study(folder), ServerState(), 0.0
    if mean == UNTRAINED:
        return probed(study, initial_parameters(study.recipe.model, study.recipe.organs, study.recipe.seed))
    student, teacher = (load_file(folder / f"{part}.safetensors") for part in ("student", "teacher"))
    for number in range(1, ROUNDS + 1 if mean else 1):
        try:
            votes = [_vote(study, site, number, student, teacher, ATTACKS.get(attack)) for site in study.sites]
        except RunError:  # training diverged
            return Finding(value=float("nan"), samples=np.array([float("nan")]), longest=longest)
        longest = max(longest, *(_longest(vote) for vote in votes if vote.site in LIARS))
        momenta = partial(log_momentum, study.recipe, number)
        result = aggregate_round(student, teacher, votes, state, FederationConfig(robust=MEANS[mean]), momenta)
        student, teacher, state = result.student, result.teacher, result.state
    return replace(probed(study, teacher), longest=longest)


def _vote(study: Study, site: str, number: int, student: Tensors, teacher: Tensors, attack: Attack | None) -> Vote:
    """What a site sends: what it learned, or what it makes of it."""
    trained = study.first_round.get(site) if number == 1 else None
    if trained is None:
        trained = train_round(student, teacher, study.sites[site], study.recipe, site=site, round_number=number)
    if number == 1:
        study.first_round[site] = trained
    deltas: Mapping[str, Tensor] = trained.deltas
    if attack is not None and site in LIARS:
        deltas = {name: attack(delta) for name, delta in deltas.items()}
    return Vote(
        site=site,
        deltas=DeltasInMemory(deltas),
        num_subjects=trained.num_subjects,
        organ_subjects=trained.organ_subjects,
        num_steps=trained.num_steps,
    )


def _longest(vote: Vote) -> float:
    return delta_norm(vote.deltas, [name for name in vote.deltas.names() if name.startswith("trunk.")])


def probed(study: Study, parameters: Tensors) -> Finding:
    """Macro AUROC over disease categories, with its bootstrap samples, paired between models."""
    train, test = (embed_subjects(parameters, study.recipe, part.dataset) for part in (study.probe, study.test))
    if not np.isfinite(train).all() or not np.isfinite(test).all():
        return Finding(value=float("nan"), samples=np.array([float("nan")]))
    columns = ["age", *(column for column in study.test.labels if column.startswith("cat_"))]
    fitted, targets = (np.stack([part.labels[column] for column in columns]) for part in (study.probe, study.test))
    scores = ridge_scores(train, fitted, test)
    return Finding(
        value=float(np.nanmean(auc(targets[1:], scores[1:]))),
        samples=bootstrap(auc, targets[1:], scores[1:], stream(0, "bootstrap")),
        age=float(r2(targets[:1], scores[:1])[0]),
    )


def row(who: str, mean: str, found: Finding, honest: Finding) -> str:
    """One line of the table."""
    if np.isnan(found.value):
        return f"| {who} | {mean} | diverged | | | {'**NO**' if mean in ROBUST else ''} |"
    low, high = interval(found.samples - honest.samples)
    change = found.value - honest.value
    holds = ("yes" if change >= -HELD_TO else "**NO**") if mean in ROBUST else ""
    return f"| {who} | {mean} | {found.value:.3f} | {change:+.3f} ({low:+.3f} to {high:+.3f}) | {found.age:.3f} | {holds} |"


def rows(folder: Path) -> list[str]:
    """The table; two runs side by side."""
    runs = [(UNTRAINED, ""), ("", ""), (PLAIN, ""), *((mean, attack) for attack in ATTACKS for mean in MEANS)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = dict(zip(runs, pool.map(partial(_finding_of, folder), runs), strict=True))
    honest = found[PLAIN, ""]
    lines = [
        f"| nobody | {PLAIN} | {honest.value:.3f} | | {honest.age:.3f} | |",
        row("nobody", UNTRAINED, found[UNTRAINED, ""], honest),
        row("nobody", "before these rounds", found["", ""], honest),
    ]
    lines += [row(f"2 of {SITES}: {attack}", mean, found[mean, attack], honest) for mean, attack in runs[3:]]
    longest, limit = max(one.longest for one in found.values()), FederationConfig().max_delta_norm
    return [
        *lines,
        f"\nLongest delta of the trunk that a liar sent: {longest:.3g} (`federation.max_delta_norm` is {limit:g}).",
    ]


def _finding_of(folder: Path, run: tuple[str, str]) -> Finding:
    return finding(folder, *run)


def main() -> None:
    torch.set_num_threads(1)
    head = [
        "# Lying sites\n",
        f"{provenance()}.\n",
        f"{SITES} sites of {SUBJECTS} subjects with all seven organs; {ROUNDS} rounds of {STEPS} steps, tiny model that had "
        f"learned from {LEARNED} others in {START_STEPS} steps; "
        f"probes are fitted on {PROBED} and read on {TESTED} subjects. Held to: a robust mean loses at most {HELD_TO} of the "
        "honest plain mean's AUROC.\n",
        "| who lies | mean | macro AUROC | against honest (95 %) | age, R2 | holds |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder))
        learn(Path(folder))
        text = [*head, *rows(Path(folder))]
    text.append(
        "\nMade by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/byzantine.py`, whose first paragraph says what is compared."
    )
    print("\n".join(text))
    if not QUICK:
        (ROOT / "benchmarks" / "byzantine.md").write_text("\n".join([*text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
