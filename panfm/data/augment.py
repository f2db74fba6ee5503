"""Augmentation of a batch: each volume's intensities are scaled, offset and made noisy, symmetrically about themselves.

Draws come from each subject's own generator and are made on the CPU, so a subject's view depends neither on the device
nor on who else is in the batch. Shifts are drawn where volumes are read (`dataset.py`).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from panfm.config import AugmentConfig
from panfm.data.dataset import Batch


def augment(batch: Batch, config: AugmentConfig, generators: Sequence[np.random.Generator]) -> Batch:
    """A new batch with intensities `scale * volume + offset + noise`; the old one is left unchanged.

    Args:
        batch: subjects with volumes normalised to unit variance.
        config: largest relative change, largest offset and standard deviation of the noise (in standard deviations).
        generators: one per subject of the batch; each is used for the organs in the order of the vocabulary.
    Raises: ValueError when there is not one generator per subject.
    """
    if len(generators) != len(batch.subjects):
        raise ValueError(f"one generator per subject expected: {len(batch.subjects)}, got {len(generators)}")
    volumes = {organ: _augmented(batch, organ, config, generators) for organ in batch.organs if organ in batch.volumes}
    return Batch(batch.subjects, batch.organs, batch.rows, volumes)


def _augmented(batch: Batch, organ: str, config: AugmentConfig, generators: Sequence[np.random.Generator]) -> Tensor:
    volumes = batch.volumes[organ]
    own = [generators[row] for row in batch.rows[organ].tolist()]
    factors = np.array([[1 + config.scale * g.uniform(-1, 1), config.offset * g.uniform(-1, 1)] for g in own])
    scale, offset = torch.from_numpy(factors.astype(np.float32)).to(volumes.device).unbind(dim=1)
    changed = volumes * scale[:, None, None, None] + offset[:, None, None, None]
    if config.noise == 0:
        return changed
    return changed.add_(_noise(own, tuple(volumes.shape[1:])).to(volumes.device), alpha=config.noise)


def _noise(generators: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 [n_o, X, Y, Z]."""
    noise = np.empty((len(generators), *shape), dtype=np.float32)
    for volume, generator in zip(noise, generators, strict=True):
        generator.standard_normal(out=volume, dtype=np.float32)
    return torch.from_numpy(noise)
