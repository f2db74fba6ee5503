"""The arms of `benchmarks/privacy.py`: who trains what with how much noise, from where, and what the result knows of diseases.

An arm is a study of two hospitals, run in this process: `train_private_round` at each, `server.aggregation` between the rounds.
What a whole rehearsal has beside that (messages, policies, ledgers) changes no parameter and is left out. Epsilon *infinity* is
the very same trainer, with samples and clips, whose noise is a millionth of the clip norm: what is compared is the noise alone.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panfm import recipes
from panfm.config import OrganGrid, PrivacyConfig, PrivacyMode, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.data.synthetic import recommended_grids
from panfm.durable import write_file
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.learning_check import read_held_out
from panfm.evaluation.probes import Floats, ridge_scores
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.pretrain.private_round import train_private_round
from panfm.pretrain.private_scope import trained_names
from panfm.pretrain.schedules import log_momentum
from panfm.privacy.accounting import Budget
from panfm.privacy.planning import noise_multiplier_for, noise_to_signal
from server.aggregation.next_model import aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, Vote
from server.rounds import GlobalModel
from server.study import first_model

DELTA = 1e-5
NO_NOISE = 1e-6
CLIP_NORM = 0.1
"""Below the norm of nearly every subject's gradient (2 to 3 from a public start, 6 to 70 from a seeded one): AdamW does not care
how long a mean gradient is, and the noise is measured against the clip."""
RATES = {False: 2e-3, True: 5e-4}
"""Learning rate from a seeded start, the recipe's own, and from a public start, which larger ones undo sooner."""
EPSILONS = (math.inf, 8.0, 1.0, 3.0)
"""In the order of what they tell: whether there was anything to learn, and whether the usual budget lets it be learnt."""
STARTS = (
    (True, PrivacyMode.dp_adapters),
    (False, PrivacyMode.dp_full),
    (True, PrivacyMode.dp_full),
    (False, PrivacyMode.dp_adapters),
)
"""With the public start, and what is trained: the way that is meant to work first, the way that is not second."""
SITES: dict[str, tuple[str, ...]] = {"north": ("brain", "heart"), "south": ("adipose", "liver")}
"""Two hospitals that share no organ: an organ is noised at one of them, trunk and heads at both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large everything is; in the order in which arms are run."""

    folder: Path
    samples: Mapping[int, int]
    """Subjects of each hospital -> expected subjects in a step's sample."""
    rounds: int
    steps_per_round: int
    voxels: int
    probe_subjects: int
    test_subjects: int
    public_subjects: int
    public_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One study."""

    public: bool
    """Whether it begins from the public start, or from a seeded initialisation."""
    mode: PrivacyMode
    """none: nobody trains; the start itself is probed."""
    subjects: int = 0
    """Of each hospital."""
    epsilon: float = math.inf
    repeat: int = 0

    @property
    def name(self) -> str:
        """Name of its file."""
        start = "public" if self.public else "seeded"
        return f"{start}-{self.mode.value}-{self.subjects}-{self.epsilon:g}-{self.repeat}"


def all_arms(sizes: Sizes, repeats: int = 1) -> list[Arm]:
    """The two starts, then all studies, the most telling first."""
    starts = [Arm(public=public, mode=PrivacyMode.none) for public in (True, False)]
    studies = product(range(repeats), EPSILONS, STARTS, sizes.samples)
    return starts + [
        Arm(public=public, mode=mode, subjects=subjects, epsilon=epsilon, repeat=repeat)
        for repeat, epsilon, (public, mode), subjects in studies
    ]


def recipe_of(sizes: Sizes, arm: Arm) -> Recipe:
    """What the hospitals of an arm agree on."""
    recipe = _without_privacy(sizes.rounds, sizes.steps_per_round, RATES[arm.public])
    return replace(recipe, organs=grids_of(sizes), privacy=privacy_of(sizes, arm))


def grids_of(sizes: Sizes) -> dict[str, OrganGrid]:
    """The organs that the hospitals image between them, on the grids of the synthetic cohort."""
    held = {organ for organs in SITES.values() for organ in organs}
    return {organ: grid for organ, grid in recommended_grids(sizes.voxels).items() if organ in held}


@cache
def _without_privacy(rounds: int, steps_per_round: int, rate: float) -> Recipe:
    settings = [
        "recipe=demo",
        f"rounds={rounds}",
        f"pretrain.steps_per_round={steps_per_round}",
        f"pretrain.learning_rate={rate}",
        "pretrain.batch_size=32",  # what is in memory at once; a sample is drawn by privacy.sampling_rate
        "pretrain.teacher_momentum=0.95",  # so few steps are short for the recipe's 0.99
        # With the recipe's 10 the organ predictor, which no embedding has in it, has ten times the adapters' gradient (2.3 and
        # 0.2 from a public start), and the clip leaves it nearly all of the room.
        "pretrain.loss.organ=1",
        "pretrain.augment.rotation_deg=0",  # turning and zooming scans costs more than learning from them
        "pretrain.augment.zoom=0",
    ]
    return recipes.recipe_of(recipes.load(settings))


def privacy_of(sizes: Sizes, arm: Arm) -> PrivacyConfig:
    """The least noise with which all rounds fit into the arm's epsilon."""
    if arm.mode is PrivacyMode.none:
        return PrivacyConfig()
    sample = sizes.samples[arm.subjects]
    rate, steps = sample / arm.subjects, sizes.rounds * sizes.steps_per_round
    noise = _noise_for(arm.epsilon, rate, steps) if math.isfinite(arm.epsilon) else NO_NOISE
    return PrivacyConfig(
        mode=arm.mode, clip_norm=CLIP_NORM, noise_multiplier=noise, sampling_rate=rate, denominator=sample
    )


@cache
def _noise_for(epsilon: float, rate: float, steps: int) -> float:
    return noise_multiplier_for(Budget(epsilon=epsilon, delta=DELTA), rate, steps)


def noise_share(sizes: Sizes, arm: Arm) -> float:
    """Noise to signal of a step at the first hospital (`panfm privacy plan`)."""
    recipe = recipe_of(sizes, arm)
    model = first_model(recipe, "").student
    organs = SITES["north"]
    names = trained_names(keep_groups(model, (*SHARED_GROUPS, *organs)), arm.mode, recipe, organs)
    trained = sum(model[name].numel() for name in names)
    return noise_to_signal(recipe.privacy.noise_multiplier, recipe.privacy.denominator, trained)


def run_arm(sizes: Sizes, arm: Arm, place: Path) -> float:
    """Train and probe; what the probes say of the test subjects goes into a file. Returns the seconds of processor time."""
    started = time.process_time()
    recipe = recipe_of(sizes, arm)
    model = first_model(recipe, str(sizes.folder / "public" / "model") if arm.public else "")
    if arm.mode is not PrivacyMode.none:
        model = conducted(model, recipe, {site: cohort_of(sizes, site, arm.subjects, recipe) for site in SITES})
    content = io.BytesIO()
    said = probed(model.teacher, recipe, sizes.folder)
    np.savez(
        content,
        targets=said["targets"],
        scores=said["scores"],
        age=said["age"],
        age_scores=said["age_scores"],
        seconds=time.process_time() - started,
    )
    write_file(place, content.getvalue())
    return time.process_time() - started


def conducted(model: GlobalModel, recipe: Recipe, datasets: Mapping[str, SubjectDataset]) -> GlobalModel:
    """The model after all rounds of a study."""
    state = ServerState()
    for number in range(1, recipe.rounds + 1):
        votes = [_vote(site, model, dataset, recipe, number) for site, dataset in datasets.items()]
        result = aggregate_round(
            model.student, model.teacher, votes, state, recipe.federation, partial(log_momentum, recipe, number)
        )
        model, state = GlobalModel(student=result.student, teacher=result.teacher), result.state
    return model


def _vote(site: str, model: GlobalModel, dataset: SubjectDataset, recipe: Recipe, number: int) -> Vote:
    """One hospital's round; what it counts is nominal, as with privacy it must be."""
    groups = (*SHARED_GROUPS, *dataset.organs)
    trained = train_private_round(
        keep_groups(model.student, groups),
        keep_groups(model.teacher, groups),
        dataset,
        recipe,
        recipe.privacy,
        round_number=number,
    )
    return Vote(
        site=site,
        deltas=DeltasInMemory(trained.deltas),
        num_subjects=1,
        organ_subjects=dict.fromkeys(dataset.organs, 1),
        num_steps=trained.num_steps,
    )


def cohort_of(sizes: Sizes, site: str, subjects: int, recipe: Recipe) -> SubjectDataset:
    """The first so many subjects of a hospital: the small cohorts are part of the large ones."""
    store = PreparedStore.open(sizes.folder / "hospitals" / site / "store")
    first = set(sorted({entry.subject for entry in store.entries})[:subjects])
    kept = PreparedStore(store.folder, tuple(entry for entry in store.entries if entry.subject in first))
    return SubjectDataset(kept, SITES[site], recipe.organs)


def probed(teacher: Mapping[str, Tensor], recipe: Recipe, folder: Path) -> dict[str, Floats]:
    """What probes on the probe subjects say of the test subjects.

    Returns: `targets` and `scores` of the disease categories, both [categories, n]; `age` and `age_scores` (years), both [1, n].
    """
    probe, test = (read_held_out([folder / split], recipe, split) for split in ("probe", "test"))
    categories = sorted(name for name in test.labels if name.startswith("cat_"))
    seen: Sequence[NDArray[np.float32]] = [embed_subjects(teacher, recipe, part.dataset) for part in (probe, test)]
    known, asked = (np.stack([part.labels[name] for name in categories]) for part in (probe, test))
    known_age, asked_age = (part.labels["age"][None] for part in (probe, test))
    return {
        "targets": asked,
        "scores": ridge_scores(seen[0], known, seen[1]),
        "age": asked_age,
        "age_scores": ridge_scores(seen[0], known_age, seen[1]),
    }
