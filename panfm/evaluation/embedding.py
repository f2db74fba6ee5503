"""Embeddings of subjects by a frozen model.

An organ's embedding is the mean and the standard deviation, over its patches, of the teacher's patch tokens. The mean alone
was the better embedding in first trials against the tokens that stand for a whole organ or subject; the deviation beside
it says how much an organ varies from place to place, and raised the probe again (DECISIONS.md). Nothing is put in the place
of an absent organ: a table of embeddings is made for a set of organs, over the subjects that have all of them.

Legend: n subjects, T patches, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.errors import DataError
from panfm.models.build import build_model, load_parameters

_SUBJECTS_AT_ONCE = 32


def organ_embedding(patches: Tensor) -> Tensor:
    """Mean and standard deviation over patches: [n, T, E] to [n, 2E]."""
    return torch.cat((patches.mean(1), patches.std(1, unbiased=False)), dim=1)


@torch.no_grad()
def embed_subjects(parameters: Mapping[str, Tensor], recipe: Recipe, dataset: SubjectDataset) -> NDArray[np.float32]:
    """Embeddings of all subjects of a dataset, each with all organs of the dataset.

    Args:
        parameters: of trunk, heads and at least the dataset's organs.
    Returns: [n, organs * 2E], rows in the order of `dataset.subjects`.
    Raises: DataError when a subject lacks an organ.
    """
    grids = {organ: recipe.organs[organ] for organ in dataset.organs}
    model = build_model(recipe.model, grids)
    load_parameters(model, {name: parameters[name] for name, _ in model.named_parameters()})
    blocks = []
    for start in range(0, len(dataset), _SUBJECTS_AT_ONCE):
        batch = dataset.batch(range(start, min(start + _SUBJECTS_AT_ONCE, len(dataset))))
        if not bool(batch.presence.all()):
            raise DataError(f"embeddings of {', '.join(dataset.organs)} need subjects that have all of them")
        features = model(batch.volumes, batch.rows, len(batch.subjects))
        blocks.append(torch.cat([organ_embedding(features.patches[organ]) for organ in dataset.organs], dim=1))
    return torch.cat(blocks).numpy()


def raw_crops(dataset: SubjectDataset) -> NDArray[np.float32]:
    """The voxels themselves, for controls: [n, voxels of all organs]."""
    blocks = []
    for start in range(0, len(dataset), _SUBJECTS_AT_ONCE):
        batch = dataset.batch(range(start, min(start + _SUBJECTS_AT_ONCE, len(dataset))))
        blocks.append(np.concatenate([batch.volumes[organ].flatten(1).numpy() for organ in dataset.organs], axis=1))
    return np.concatenate(blocks)
