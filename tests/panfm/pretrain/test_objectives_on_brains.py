"""Every objective trains for 200 steps on real brains without collapse, and a probe of age reads more than before the training.

Training sees all brains and no age; ages are predicted by 5-fold cross-validation of a ridge on the mean of the student's patch
tokens. One seed on 118 brains: it says that something was learned, not which objective is better.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold
from torch import Tensor

from panfm import update
from panfm.config import (
    AugmentConfig,
    LossWeights,
    ModelConfig,
    Objective,
    OrganGrid,
    PatchMaskConfig,
    PretrainConfig,
    PrototypeConfig,
    Recipe,
)
from panfm.data.dataset import SubjectDataset
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.prepare import prepare_store
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.probes import Floats, r2, ridge_scores
from panfm.models.build import initial_parameters
from panfm.pretrain.collapse import collapse_reason
from panfm.pretrain.local_round import train_round
from panfm.protocol import TrainMetrics

STEPS = 200


@dataclass(frozen=True)
class Brains:
    dataset: SubjectDataset
    age: Floats


def recipe_of(objective: Objective, seed: int = 0) -> Recipe:
    """`recipe=real` for brains alone, in one round; prototypes at a cool teacher, as batches are small."""
    return Recipe(
        seed=seed,
        rounds=1,
        threads=1,
        organs={"brain": OrganGrid(shape=[32, 32, 32], spacing_mm=[5.0, 6.0, 5.0])},
        model=ModelConfig(
            prototypes=1024 if objective is Objective.prototypes else 0,
            decoder_depth=2 if objective is Objective.pixels else 0,
        ),
        pretrain=PretrainConfig(
            objective=objective,
            steps_per_round=STEPS,
            batch_size=16,
            learning_rate=1e-3,
            warmup_steps=30,
            teacher_momentum=0.993,
            loss=LossWeights(seen=0.0),
            prototypes=PrototypeConfig(final_teacher_temperature=0.04),
            patch_mask=PatchMaskConfig(rate=0.75, block=2),
            augment=AugmentConfig(rotation_deg=10, zoom=0.1, flip=[0.5, 0.0, 0.0]),
        ),
    )


def read_brains(real_data: Path, folder: Path) -> Brains:
    """All brains whose age is known, prepared."""
    with (real_data / "brain_ixi" / "participants.csv").open(newline="") as table:
        ages = {row["MRID"]: float(row["Age"]) for row in csv.DictReader(table) if row["Age"]}
    rows = [
        ScanRow(subject=name, organ="brain", path=path, window=(1, 255))
        for name in sorted(ages)
        if (path := real_data / "brain_ixi" / f"{name}_T1brain.nii.gz").exists()
    ]
    write_scan_table(folder / "scans.csv", rows)
    recipe = recipe_of(Objective.features)
    store = prepare_store(folder, folder / "store", recipe.organs, recipe.prepare)
    dataset = SubjectDataset(store, ["brain"], recipe.organs)
    return Brains(dataset, np.array([ages[name] for name in dataset.subjects]))


@pytest.fixture(scope="module")
def brains(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Brains:
    return read_brains(real_data, tmp_path_factory.mktemp("brains"))


def age_r2(parameters: dict[str, Tensor], recipe: Recipe, brains: Brains) -> tuple[float, float]:
    """R2 of age, read from the mean of patch tokens and from the whole embedding."""
    width = recipe.model.width
    whole = embed_subjects(parameters, recipe, brains.dataset)
    found = []
    for embedding in (whole[:, width : 2 * width], whole):
        told = np.zeros(len(brains.age))
        for fit, test in KFold(5, shuffle=True, random_state=0).split(embedding):
            told[test] = ridge_scores(embedding[fit], brains.age[None, fit], embedding[test])[0]
        found.append(float(r2(brains.age[None], told[None])[0]))
    return found[0], found[1]


def train(recipe: Recipe, brains: Brains) -> tuple[dict[str, Tensor], dict[str, Tensor], TrainMetrics]:
    """Parameters before and after, and the round's metrics."""
    start = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    trained = train_round(start, start, brains.dataset, recipe, site="s", round_number=1)
    return start, update.add(start, trained.deltas), trained.metrics


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(Objective))
def test_it_trains_on_real_brains(brains: Brains, objective: Objective) -> None:
    recipe = recipe_of(objective)
    start, after, metrics = train(recipe, brains)
    assert collapse_reason(metrics, objective) is None
    assert age_r2(after, recipe, brains)[0] > age_r2(start, recipe, brains)[0]
