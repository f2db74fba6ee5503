"""What the tests of pre-training share: a tiny recipe, random batches of ragged subjects, and prepared stores on the spot."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from panfm.config import (
    AugmentConfig,
    LossWeights,
    ModelConfig,
    OrganGrid,
    OrganMaskConfig,
    PrepareConfig,
    PretrainConfig,
    Recipe,
)
from panfm.data.dataset import Batch, SubjectDataset
from panfm.data.store import PreparedStore, StoreEntry, write_table
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel

ORGANS = ("brain", "heart", "liver")
MARGIN = 1

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., PanOrganModel]
MakeBatch = Callable[..., Batch]
MakeDataset = Callable[..., SubjectDataset]


@pytest.fixture(scope="session")
def make_recipe() -> MakeRecipe:
    """A recipe of three organs with 8, 4 and 2 patches; keywords change its `pretrain` part."""

    def make(organ_mask: OrganMaskConfig | None = None, loss: LossWeights | None = None, **pretrain: float) -> Recipe:
        settings: dict[str, float] = {"steps_per_round": 3, "batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 2}
        train = PretrainConfig(
            organ_mask=organ_mask or OrganMaskConfig(),
            loss=loss or LossWeights(),
            augment=AugmentConfig(shift_voxels=MARGIN),
        )
        for name, value in {**settings, **pretrain}.items():
            setattr(train, name, value)
        shapes = zip(ORGANS, ([8, 8, 8], [8, 4, 8], [4, 4, 8]), strict=True)
        return Recipe(
            rounds=2,
            threads=1,
            organs={organ: OrganGrid(shape=shape) for organ, shape in shapes},
            model=ModelConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, adapter_width=4, predictor_width=24, patch=4),
            prepare=PrepareConfig(margin_voxels=MARGIN),
            pretrain=train,
        )

    return make


@pytest.fixture(scope="session")
def make_model(make_recipe: MakeRecipe) -> MakeModel:
    """A model of the recipe with no parameter at 0 or 1."""

    def make(organs: Sequence[str] = ORGANS, seed: int = 0) -> PanOrganModel:
        recipe = make_recipe()
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
