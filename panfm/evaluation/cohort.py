"""The subjects of an evaluation, from one or several sites: who they are, what they have, and what is known of them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.errors import DataError
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.probes import Floats
from panfm.evaluation.site_probes import labels_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePart:
    """One site's subjects of a split."""

    site: str
    store: PreparedStore
    split: str
    dataset: SubjectDataset
    labels: dict[str, Floats]
    """Column -> [n], NaN where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The subjects of a split, site after site."""

    parts: tuple[SitePart, ...]
    organs: tuple[str, ...]
    """Those that anybody has, in the model's order."""
    labels: dict[str, Floats]
    """Column -> [n], NaN where unknown or not asked at the subject's site."""

    @property
    def site_of(self) -> NDArray[np.int64]:
        """[n], the place of each subject's site in `parts`."""
        return np.repeat(np.arange(len(self.parts)), [len(part.dataset) for part in self.parts])

    @property
    def people(self) -> set[tuple[Path, str]]:
        """Store and pseudonym of each subject; the same pseudonym at two sites is two people."""
        return {(part.store.folder.resolve(), name) for part in self.parts for name in part.dataset.subjects}

    @property
    def presence(self) -> Floats:
        """[n, organs], 1 where the subject has the organ."""
        held = [own for part in self.parts for own in part.dataset.organs_of]
        return np.array([[float(organ in own) for organ in self.organs] for own in held])


def read_cohort(folders: Sequence[Path], recipe: Recipe, split: str) -> Cohort:
    """The subjects of a split, from every folder that has it.

    Args:
        folders: of sites, each with `store/` and `labels.csv`.
    Raises: DataError when none has subjects of this split, none has labels, a folder comes twice, or a store cannot be read.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise DataError(
            f"a folder comes twice in {', '.join(map(str, folders))}: its subjects would count twice; name it once"
        )
    parts = [part for folder in folders if (part := _read_part(folder, recipe, split)) is not None]
    if not parts:
        raise DataError(
            f"no subject of split {split!r} in {', '.join(map(str, folders))}; prepare them with that split, or name another"
        )
    return cohort_of(parts, recipe)


def cohort_of(parts: Sequence[SitePart], recipe: Recipe) -> Cohort:
    """Several sites' subjects as one cohort.

    Raises: DataError when nothing is known of anybody.
    """
    columns = list(dict.fromkeys(column for part in parts for column in part.labels))
    if not columns:
        raise DataError(
            "no labels.csv beside any of the stores: there is nothing to probe; write one with subject and a column a label"
        )
    held = {organ for part in parts for organ in part.dataset.num_subjects}
    unknown = [np.full(len(part.dataset), np.nan) for part in parts]
    return Cohort(
        parts=tuple(parts),
        organs=tuple(organ for organ in recipe.organs if organ in held),
        labels={
            column: np.concatenate([part.labels.get(column, empty) for part, empty in zip(parts, unknown, strict=True)])
            for column in columns
        },
    )


def embed_cohort(
    parameters: Mapping[str, Tensor], recipe: Recipe, cohort: Cohort, device: str = "cpu"
) -> NDArray[np.float32]:
    """Embeddings of everybody, each from the organs that the subject has: [n, 3E]."""
    return np.concatenate([embed_subjects(parameters, recipe, part.dataset, device) for part in cohort.parts])


def _read_part(folder: Path, recipe: Recipe, split: str) -> SitePart | None:
    store = PreparedStore.open(folder / "store")
    held = {entry.organ for entry in store.entries if entry.split == split}
    organs = [organ for organ in recipe.organs if organ in held]
    if not organs:
        return None
    dataset = SubjectDataset(store, organs, recipe.organs, split)
    labels = labels_of(folder / "labels.csv", dataset.subjects)
    return SitePart(site=folder.resolve().name, store=store, split=split, dataset=dataset, labels=labels)
