"""What the tests of pre-training share: a tiny recipe, random batches of ragged subjects, and prepared stores on the spot."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panfm.config import (
    AugmentConfig,
    LossWeights,
    ModelConfig,
    Objective,
    OrganGrid,
    OrganMaskConfig,
    PatchMaskConfig,
    PrepareConfig,
    PretrainConfig,
    Recipe,
)
from panfm.data.dataset import Batch, SubjectDataset
from panfm.data.store import PreparedStore, StoreEntry, write_table
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.step import Masks, draw_masks, patch_counts, teacher_view
from panfm.randomness import stream

ORGANS = ("brain", "heart", "liver")
MARGIN = 1
PROTOTYPES = 32

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., PanOrganModel]
MakeBatch = Callable[..., Batch]
MakeDataset = Callable[..., SubjectDataset]


@pytest.fixture(scope="session")
def make_recipe() -> MakeRecipe:
    """A recipe of three organs with 8, 4 and 2 patches; keywords change its `pretrain` part."""

    def make(
        organ_mask: OrganMaskConfig | None = None,
        loss: LossWeights | None = None,
        objective: Objective = Objective.features,
        **pretrain: float,
    ) -> Recipe:
        settings: dict[str, float] = {"steps_per_round": 3, "batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 2}
        train = PretrainConfig(
            objective=objective,
            organ_mask=organ_mask or OrganMaskConfig(),
            loss=loss or LossWeights(),
            augment=AugmentConfig(shift_voxels=MARGIN),
        )
        for name, value in {**settings, **pretrain}.items():
            setattr(train, name, value)
        shapes = zip(ORGANS, ([8, 8, 8], [8, 4, 8], [4, 4, 8]), strict=True)
        model = ModelConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, adapter_width=4, predictor_width=24, patch=4)
        model.prototypes = PROTOTYPES if objective is Objective.prototypes else 0
        model.decoder_depth = 2 if objective is Objective.pixels else 0
        return Recipe(
            rounds=2,
            threads=1,
            organs={organ: OrganGrid(shape=shape) for organ, shape in shapes},
            model=model,
            prepare=PrepareConfig(margin_voxels=MARGIN),
            pretrain=train,
        )

    return make


@pytest.fixture(scope="session")
def make_model(make_recipe: MakeRecipe) -> MakeModel:
    """A model of the recipe with no parameter at 0 or 1."""

    def make(organs: Sequence[str] = ORGANS, seed: int = 0, objective: Objective = Objective.features) -> PanOrganModel:
        recipe = make_recipe(objective=objective)
        grids = {organ: recipe.organs[organ] for organ in organs}
        model, noise = build_model(recipe.model, grids), torch.Generator().manual_seed(seed)
        start = initial_parameters(recipe.model, grids, seed)
        load_parameters(model, {n: p + 0.1 * torch.randn(p.shape, generator=noise) for n, p in start.items()})
        return model

    return make


@pytest.fixture(scope="session")
def make_batch(make_recipe: MakeRecipe) -> MakeBatch:
    """Random volumes of subjects with these organs; a volume depends on (subject, organ) only."""

    def make(presence: dict[str, Sequence[str]]) -> Batch:
        recipe = make_recipe()
        rows = {o: [row for row, organs in enumerate(presence.values()) if o in organs] for o in ORGANS}
        rows = {organ: present for organ, present in rows.items() if present}
        names = tuple(presence)

        def volume(row: int, organ: str) -> torch.Tensor:
            seed = [*names[row].encode(), ORGANS.index(organ)]
            voxels = np.random.default_rng(seed).standard_normal(recipe.organs[organ].shape)
            return torch.from_numpy(voxels.astype(np.float32))

        return Batch(
            names,
            ORGANS,
            {organ: torch.tensor(present) for organ, present in rows.items()},
            {organ: torch.stack([volume(row, organ) for row in present]) for organ, present in rows.items()},
        )

    return make


@dataclass(frozen=True)
class Problem:
    """All that a step's loss is made of."""

    student: PanOrganModel
    teacher: PanOrganModel
    given: Batch
    seen: Batch
    target: Features
    masks: Masks

    def only(self, row: int) -> Problem:
        """One subject of it, with its own targets and masks, as a batch of one."""
        rows = {organ: held.tolist() for organ, held in self.given.rows.items()}
        places = {organ: held.index(row) for organ, held in rows.items() if row in held}

        def own(by_organ: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {organ: by_organ[organ][place : place + 1] for organ, place in places.items()}

        def alone(batch: Batch) -> Batch:
            row_zero = {organ: torch.tensor([0]) for organ in places}
            return Batch((batch.subjects[row],), batch.organs, row_zero, own(batch.volumes))

        features = Features(
            subject=self.target.subject[row : row + 1],
            organ=own(self.target.organ),
            patches=own(self.target.patches),
            attention={},
        )
        return replace(
            self,
            given=alone(self.given),
            seen=alone(self.seen),
            target=features,
            masks=Masks(organs=self.masks.organs[row : row + 1], patches=own(self.masks.patches)),
        )


MakeProblem = Callable[..., Problem]


@pytest.fixture(scope="session")
def make_problem(make_recipe: MakeRecipe, make_model: MakeModel, make_batch: MakeBatch) -> MakeProblem:
    """Student and teacher that differ, a batch of these subjects, what the student sees of it, and masks."""

    def make(
        objective: Objective, presence: Mapping[str, Sequence[str]], config: OrganMaskConfig | None = None
    ) -> Problem:
        recipe, given = make_recipe(objective=objective), make_batch(presence)
        student, teacher = (make_model(seed=seed, objective=objective) for seed in (1, 2))
        target, saliency = teacher_view(teacher, given, 2)
        counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in given.rows}
        draws = [[stream(5, name, what) for name in given.subjects] for what in ("organs", "patches")]
        masks = draw_masks(given, saliency, counts, config or OrganMaskConfig(rate=0.5), PatchMaskConfig(), *draws)
        brighter = {organ: 1.1 * volumes + 0.2 for organ, volumes in given.volumes.items()}
        return Problem(student, teacher, given, replace(given, volumes=brighter), target, masks)

    return make


@pytest.fixture
def make_dataset(tmp_path: Path, make_recipe: MakeRecipe) -> MakeDataset:
    """A prepared store of subjects with these organs, as a dataset.

    All voxels of a subject lie near a level of its own, so that hidden patches follow from visible ones and from nothing else.
    """

    def make(presence: dict[str, Sequence[str]], organs: Sequence[str] = ORGANS) -> SubjectDataset:
        grids, entries = make_recipe().organs, []
        for subject, own in presence.items():
            for organ in own:
                shape = tuple(side + 2 * MARGIN for side in grids[organ].shape)
                file = f"{organ}/{subject}.npy"
                (tmp_path / organ).mkdir(exist_ok=True)
                np.save(tmp_path / file, _volume(subject, shape))
                digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
                entries.append(
                    StoreEntry(
                        subject=subject,
                        visit="",
                        organ=organ,
                        file=file,
                        shape=(shape[0], shape[1], shape[2]),
                        spacing_mm=(4.0, 4.0, 4.0),
                        source_digest="0" * 64,
                        digest=digest,
                    )
                )
        write_table(tmp_path, entries)
        return SubjectDataset(PreparedStore.open(tmp_path), organs, grids)

    return make


def _volume(subject: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    draws = np.random.default_rng([*subject.encode()])
    level = 1.5 * draws.standard_normal()
    return (level + 0.1 * draws.standard_normal(shape)).astype(np.float16)
