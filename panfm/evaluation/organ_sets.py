"""Embeddings of the same subjects from every non-empty set of organs: what missing-organ sweeps and Shapley values stand on.

The tokens of a subject's organs see each other, so each set is an encoding of its own, from the embedding of patches on. What is
saved is everything else: a scan is read and moved to the device once for all sets, an absent organ takes no compute
(with seven organs all 127 sets together cost 64 passes over the complete subjects and not 127), and probes, sweeps and
contributions share one table. Nothing is imputed.

Legend: S organ sets, n subjects, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.evaluation.embedding import frozen_model, subject_embedding

OrganSet = tuple[str, ...]
"""Organs in the model's order."""

_SUBJECTS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEmbeddings:
    """One embedding of each subject from each set of organs."""

    sets: tuple[OrganSet, ...]
    values: NDArray[np.float32]
    """[S, n, 3E]."""


def all_sets(organs: Sequence[str]) -> tuple[OrganSet, ...]:
    """Every non-empty set, the complete one first, then by the number of missing organs."""
    return tuple(held for number in range(len(organs), 0, -1) for held in combinations(organs, number))


def complete_subjects(dataset: SubjectDataset, organs: Sequence[str]) -> list[int]:
    """Places of the subjects that have all of these organs."""
    return [place for place, held in enumerate(dataset.organs_of) if held >= set(organs)]


@torch.inference_mode()
def embed_sets(
    parameters: Mapping[str, Tensor],
    recipe: Recipe,
    dataset: SubjectDataset,
    places: Sequence[int],
    sets: Sequence[OrganSet],
    *,
    device: str = "cpu",
    on_subjects: Callable[[int], None] | None = None,
) -> SetEmbeddings:
    """Embed the subjects from each set.

    Args:
        parameters: of trunk, heads and at least the dataset's organs.
        places: of subjects that have every organ of every set; see `complete_subjects`.
        on_subjects: called with how many more are done.
    Raises: DataError when a scan's file is missing or changed.
    """
    model = frozen_model(parameters, recipe, dataset.organs, device)
    values = np.empty((len(sets), len(places), 3 * recipe.model.width), dtype=np.float32)
    for start in range(0, len(places), _SUBJECTS_AT_ONCE):
        chosen = places[start : start + _SUBJECTS_AT_ONCE]
        batch = dataset.batch(chosen).to(device)
        for row, held in enumerate(sets):
            rows = {organ: batch.rows[organ] for organ in held}
            features = model({organ: batch.scans[organ] for organ in held}, rows, len(chosen))
            values[row, start : start + len(chosen)] = subject_embedding(features, rows).cpu().numpy()
        if on_subjects is not None:
            on_subjects(len(chosen))
    return SetEmbeddings(sets=tuple(sets), values=values)
