"""Embeddings of subjects by a frozen model: one vector of one size for any non-empty set of organs.

An organ's embedding is the mean and the standard deviation, over its patches, of the patch tokens. The mean alone was the better
embedding in first trials against the token of a whole organ; the deviation beside it says how much an organ varies from place to
place, and raised the probe again (DECISIONS.md). A subject's embedding is its subject token and the mean of the embeddings of
the organs that it has: absent organs are neither imputed nor counted.

Legend: n subjects, n_o subjects with organ o, T patches, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.native_batch import on_grid
from panfm.errors import DataError, ScanError
from panfm.models.build import build_model, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel

_SUBJECTS_AT_ONCE = 32


def organ_embedding(patches: Tensor) -> Tensor:
    """Mean and standard deviation over patches: [n, T, E] to [n, 2E]."""
    return torch.cat((patches.mean(1), patches.std(1, unbiased=False)), dim=1)


def subject_embedding(features: Features, rows: Mapping[str, Tensor]) -> Tensor:
    """Subject token and mean organ embedding.

    Args:
        rows: organ -> int64 [n_o], which subjects the organ's features are of.
    Returns: [n, 3E].
    """
    subject = features.subject
    total = subject.new_zeros(len(subject), 2 * subject.shape[1])
    count = subject.new_zeros(len(subject), 1)
    for organ, patches in features.patches.items():
        total = total.index_add(0, rows[organ], organ_embedding(patches))
        count = count.index_add(0, rows[organ], count.new_ones(len(patches), 1))
    return torch.cat((subject, total / count), dim=1)


def embed_subjects(
    parameters: Mapping[str, Tensor], recipe: Recipe, dataset: SubjectDataset, device: str = "cpu"
) -> NDArray[np.float32]:
    """Embeddings of all subjects of a dataset, each from the organs that it has.

    Args:
        parameters: of trunk, heads and at least the dataset's organs.
    Returns: [n, 3E], rows in the order of `dataset.subjects`.
    """
    return _embedded(parameters, recipe, dataset, range(len(dataset)), device)


def embed_readable(
    parameters: Mapping[str, Tensor], recipe: Recipe, dataset: SubjectDataset, device: str = "cpu"
) -> tuple[tuple[str, ...], NDArray[np.float32]]:
    """The same for those whose every scan can be read, and who they are: at a site, one changed file must not end the rest."""
    places = [place for place in range(len(dataset)) if _is_readable(dataset, place)]
    names = tuple(dataset.subjects[place] for place in places)
    if not places:
        return names, np.empty((0, 3 * recipe.model.width), dtype=np.float32)
    return names, _embedded(parameters, recipe, dataset, places, device)


def frozen_model(
    parameters: Mapping[str, Tensor], recipe: Recipe, organs: Sequence[str], device: str = "cpu"
) -> PanOrganModel:
    """The model of these organs, on a device; parameters of other organs are left out."""
    model = build_model(recipe.model, {organ: recipe.organs[organ] for organ in organs}).to(device)
    load_parameters(model, {name: parameters[name] for name, _ in model.named_parameters()})
    return model


@torch.no_grad()
def _embedded(
    parameters: Mapping[str, Tensor], recipe: Recipe, dataset: SubjectDataset, places: Sequence[int], device: str
) -> NDArray[np.float32]:
    model = frozen_model(parameters, recipe, dataset.organs, device)
    blocks = []
    for start in range(0, len(places), _SUBJECTS_AT_ONCE):
        batch = dataset.batch(places[start : start + _SUBJECTS_AT_ONCE]).to(device)
        features = model(batch.scans, batch.rows, len(batch.subjects))
        blocks.append(subject_embedding(features, batch.rows).cpu())
    return torch.cat(blocks).numpy()


def _is_readable(dataset: SubjectDataset, place: int) -> bool:
    try:
        dataset.batch([place])
    except ScanError:
        return False
    return True


def raw_crops(dataset: SubjectDataset) -> NDArray[np.float32]:
    """The voxels themselves, for controls: [n, voxels of all organs]; thick ones repeated until they fill their grid.

    Raises: DataError when a subject lacks an organ: a table of voxels has no place for that.
    """
    blocks = []
    for start in range(0, len(dataset), _SUBJECTS_AT_ONCE):
        batch = dataset.batch(range(start, min(start + _SUBJECTS_AT_ONCE, len(dataset))))
        if not bool(batch.presence.all()):
            raise DataError(
                f"raw crops of {', '.join(dataset.organs)} need subjects that have all of them; mark others out"
            )
        volumes = [on_grid(batch.scans[organ]) for organ in dataset.organs]
        blocks.append(np.concatenate([volume.flatten(1).numpy() for volume in volumes], axis=1))
    return np.concatenate(blocks)
