"""Embeddings: the formula, independence of other subjects, and no organ imputed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from panfm.config import ModelConfig, OrganGrid, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore, StoreEntry, write_table
from panfm.errors import DataError
from panfm.evaluation.embedding import embed_subjects, organ_embedding, raw_crops, subject_embedding
from panfm.models.build import initial_parameters
from panfm.models.pan_organ import Features

SMALL = ModelConfig(width=16, depth=2, heads=2, adapter_width=4, predictor_width=16, patch=4)


def recipe() -> Recipe:
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[2.0, 2.0, 2.0]) for organ in ("brain", "liver")}
    return Recipe(organs=grids, model=SMALL)


def store_of(folder: Path, presence: Mapping[str, tuple[str, ...]]) -> PreparedStore:
    """A prepared store of noise volumes, 12 voxels a side."""
    entries = []
    for subject, organs in presence.items():
        for organ in organs:
            draws = np.random.default_rng(list(f"{subject}{organ}".encode()))
            (folder / organ).mkdir(parents=True, exist_ok=True)
            path = folder / organ / f"{subject}.npy"
            np.save(path, draws.normal(size=(12, 12, 12)).astype(np.float16))
            entries.append(
                StoreEntry(
                    subject=subject,
                    visit="1",
                    organ=organ,
                    file=f"{organ}/{subject}.npy",
                    shape=(12, 12, 12),
                    spacing_mm=(2.0, 2.0, 2.0),
                    source_digest="0" * 64,
                    digest=hashlib.sha256(path.read_bytes()).hexdigest(),
                )
            )
    write_table(folder, entries)
    return PreparedStore.open(folder)


def test_organ_embedding_is_mean_and_deviation_over_patches() -> None:
    patches = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = np.concatenate([patches.numpy().mean(1), patches.numpy().std(1)], axis=1)
    assert organ_embedding(patches).numpy() == pytest.approx(expected, abs=1e-6)


def test_a_subjects_embedding_does_not_depend_on_the_others(tmp_path: Path) -> None:
    study = recipe()
    parameters = initial_parameters(study.model, study.organs, seed=1)
    people = {f"sub-{n:02d}": ("brain", "liver") for n in range(40)}
    everybody = SubjectDataset(store_of(tmp_path / "all", people), ("brain", "liver"), study.organs)
    two = SubjectDataset(
        store_of(tmp_path / "two", {name: people[name] for name in ("sub-03", "sub-37")}),
        ("brain", "liver"),
        study.organs,
    )
    together, apart = (embed_subjects(parameters, study, dataset) for dataset in (everybody, two))
    assert together.shape == (40, 3 * SMALL.width)
    assert together[[3, 37]] == pytest.approx(apart, abs=1e-5)


def test_a_subject_embedding_by_a_loop_over_its_organs() -> None:
    draws = torch.Generator().manual_seed(3)
    rows = {"brain": torch.tensor([0, 2]), "liver": torch.tensor([1, 2])}
    features = Features(
        subject=torch.randn(3, 4, generator=draws),
        organ={organ: torch.randn(2, 4, generator=draws) for organ in rows},
        patches={organ: torch.randn(2, 5, 4, generator=draws) for organ in rows},
        attention={},
    )
    found = subject_embedding(features, rows).numpy()
    held = {0: [("brain", 0)], 1: [("liver", 0)], 2: [("brain", 1), ("liver", 1)]}
    for subject, scans in held.items():
        organs = [organ_embedding(features.patches[organ][place][None])[0].numpy() for organ, place in scans]
        expected = np.concatenate([features.subject[subject].numpy(), np.mean(organs, axis=0)])
        assert found[subject] == pytest.approx(expected, abs=1e-6)


def test_any_organ_set_gives_a_vector_of_the_same_size(tmp_path: Path) -> None:
    study = recipe()
    parameters = initial_parameters(study.model, study.organs, seed=1)
    ragged = {"sub-1": ("brain", "liver"), "sub-2": ("brain",), "sub-3": ("liver",)}
    store = store_of(tmp_path, ragged)
    together = embed_subjects(parameters, study, SubjectDataset(store, ("brain", "liver"), study.organs))
    assert together.shape == (3, 3 * SMALL.width)
    brains = embed_subjects(parameters, study, SubjectDataset(store, ("brain",), study.organs))
    assert brains[1] == pytest.approx(together[1], abs=1e-5)
    with pytest.raises(DataError, match="have all of them"):
        raw_crops(SubjectDataset(store, ("brain", "liver"), study.organs))


def test_raw_crops_are_the_centre_voxels(tmp_path: Path) -> None:
    study = recipe()
    store = store_of(tmp_path, {"sub-1": ("brain",)})
    crops = raw_crops(SubjectDataset(store, ("brain",), study.organs))
    stored = np.load(tmp_path / "brain" / "sub-1.npy").astype(np.float32)
    assert np.array_equal(crops, stored[2:10, 2:10, 2:10].reshape(1, -1))
