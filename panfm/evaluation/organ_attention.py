"""What the subject token attends to, and whether it still does when an organ's scan is replaced by noise.

A model that reads its organs should look away from one that holds nothing; one whose attention is a habit goes on looking (seen
in audio-visual models: RollingQ, ICML 2025). The noise is white, with each scan's own mean and deviation, so that
nothing but structure is gone; whole subjects only, and every organ in turn.

Legend: n subjects, O organs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import Batch, SubjectDataset
from panfm.data.native_batch import NativeBlock, NativeVolumes
from panfm.evaluation.embedding import frozen_model
from panfm.evaluation.probes import Floats
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain.saliency import Saliency, saliency_of
from panfm.randomness import stream

_SUBJECTS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OrganAttention:
    """Of subjects that have all the organs."""

    organs: tuple[str, ...]
    share: Floats
    """[n, O]: attention of the subject token, among the organs; a row sums to 1."""
    lift: Floats
    """[n, O]: share over the organ's part of the tokens."""
    share_of_noise: Floats
    """[n, O]: the organ's share where that organ alone is noise."""


@torch.inference_mode()
def organ_attention(
    parameters: Mapping[str, Tensor],
    recipe: Recipe,
    dataset: SubjectDataset,
    places: Sequence[int],
    organs: Sequence[str],
    *,
    seed: int,
    device: str = "cpu",
) -> OrganAttention:
    """Shares of the scans as they are, and of each organ as noise.

    Args:
        parameters: of trunk, heads and at least the dataset's organs.
        places: of subjects that have all of `organs`.
        seed: of the noise, which is a function of it, the subject and the organ.
    """
    model = frozen_model(parameters, recipe, dataset.organs, device)
    share, lift, noise = [], [], []
    for start in range(0, len(places), _SUBJECTS_AT_ONCE):
        batch = dataset.batch(places[start : start + _SUBJECTS_AT_ONCE])
        scans = {organ: batch.scans[organ].to(device) for organ in organs}
        plain = _saliency(model, recipe, batch, scans)
        swapped = [
            _saliency(model, recipe, batch, scans | {organ: _noise(batch, organ, seed).to(device)}) for organ in organs
        ]
        share.append(plain.share.cpu().numpy())
        lift.append(plain.lift.cpu().numpy())
        noise.append(np.stack([seen.share[:, column].cpu().numpy() for column, seen in enumerate(swapped)], axis=1))
    blocks = (np.concatenate(rows).astype(np.float64) for rows in (share, lift, noise))
    return OrganAttention(organs=tuple(organs), **dict(zip(("share", "lift", "share_of_noise"), blocks, strict=True)))


def evenness_of(share: Floats) -> Floats:
    """Entropy of each subject's shares over its maximum, 0 to 1: [n, O] to [n]; O is 2 or more."""
    logarithms = np.log(share, out=np.zeros_like(share), where=share > 0)
    entropy: Floats = -(share * logarithms).sum(1) / np.log(share.shape[1])
    return entropy


def _saliency(
    model: PanOrganModel, recipe: Recipe, batch: Batch, scans: Mapping[str, Tensor | NativeVolumes]
) -> Saliency:
    device = next(iter(scans.values())).device
    rows = {organ: torch.arange(len(batch.subjects), device=device) for organ in scans}
    blocks = min(recipe.pretrain.organ_mask.saliency_blocks, recipe.model.depth)
    features = model(scans, rows, len(batch.subjects), saliency_blocks=blocks)
    tokens = {organ: 1 + features.patches[organ].shape[1] for organ in scans}
    return saliency_of(features.attention, rows, tokens, tuple(scans), len(batch.subjects))


def _noise(batch: Batch, organ: str, seed: int) -> Tensor | NativeVolumes:
    """White noise in place of the organ of every subject."""
    scans = batch.scans[organ]
    draws = [stream(seed, "noise swap", subject, organ) for subject in batch.subjects]
    if isinstance(scans, Tensor):
        return _noise_like(scans, draws)

    def of_block(block: NativeBlock) -> Tensor:
        return _noise_like(block.volumes, [draws[place] for place in block.positions.tolist()])

    return scans.changed(of_block)


def _noise_like(volumes: Tensor, draws: Sequence[np.random.Generator]) -> Tensor:
    """Normal noise of each volume's mean and deviation, [n, X, Y, Z]."""
    white = np.stack([generator.standard_normal(volumes.shape[1:], dtype=np.float32) for generator in draws])
    deviation, mean = torch.std_mean(volumes, dim=(1, 2, 3), keepdim=True, correction=0)
    return torch.from_numpy(white) * deviation + mean
