"""Small sites on disk: prepared stores of noise volumes, with a table of labels beside them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from panfm.config import ModelConfig, OrganGrid, Recipe
from panfm.data.manifest import LabelTable, write_labels
from panfm.data.store import StoreEntry, write_table

ORGANS = ("brain", "liver", "spleen")
MakeSite = Callable[..., Path]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[2.0, 2.0, 2.0]) for organ in ORGANS}
    model = ModelConfig(width=16, depth=2, heads=2, adapter_width=4, predictor_width=16, patch=4)
    return Recipe(organs=grids, model=model, seed=2)


@pytest.fixture(scope="module")
def make_site(tmp_path_factory: pytest.TempPathFactory) -> MakeSite:
    def make(
        name: str,
        presence: Mapping[str, Sequence[str]],
        labels: Mapping[str, Sequence[float]] | None = None,
        split: str = "test",
        levels: Mapping[tuple[str, str], float] | None = None,
    ) -> Path:
        """A site's folder; `labels` by column, in the order of the subjects; `levels` is added to the noise of a scan."""
        folder = tmp_path_factory.mktemp("sites") / name
        write_entries(folder / "store", presence, split, levels or {})
        if labels is not None:
            table = LabelTable(
                names=tuple(labels),
                subjects=tuple(presence),
                visits=("1",) * len(presence),
                values=np.array(list(labels.values()), dtype=np.float64).T,
            )
            write_labels(folder / "labels.csv", table)
        return folder

    return make


def write_entries(
    store: Path, presence: Mapping[str, Sequence[str]], split: str, levels: Mapping[tuple[str, str], float]
) -> None:
    entries = []
    for subject, organs in presence.items():
        for organ in organs:
            draws = np.random.default_rng(list(f"{subject}{organ}".encode()))
            path = store / organ / f"{subject}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = levels.get((subject, organ), 0.0)
            np.save(path, (level + draws.normal(size=(8, 8, 8))).astype(np.float16))
            entries.append(
                StoreEntry(
                    subject=subject,
                    visit="1",
                    organ=organ,
                    file=f"{organ}/{subject}.npy",
                    shape=(8, 8, 8),
                    spacing_mm=(2.0, 2.0, 2.0),
                    source_digest="0" * 64,
                    digest=hashlib.sha256(path.read_bytes()).hexdigest(),
                    split=split,
                )
            )
    write_table(store, entries)
