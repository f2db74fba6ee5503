"""Augmentation of a batch on its device: `moved` for teacher and student alike, `augment` for the student alone.

What a patch shows may not move between the two, or the student would be asked for another place's features. Draws come
from each subject's own generator and are made on the CPU, so a subject's view depends neither on the device nor on who else
is in the batch. Shifts are drawn where volumes are read (`dataset.py`); a setting of 0 draws nothing and changes no bit.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from panfm.config import AugmentConfig, OrganGrid
from panfm.data.augment_intensity import BIAS_WAVES, add_bias, blur, gamma
from panfm.data.augment_spatial import affine_matrices, flip, warp
from panfm.data.dataset import Batch
from panfm.data.native_batch import NativeVolumes

Draws = Sequence[np.random.Generator]
_Change = Callable[[Tensor, Tensor, AugmentConfig, Draws], Tensor]
"""(volumes [n, X, Y, Z], spacing_mm [n, 3], the organ's settings, a generator for each volume) -> volumes."""


def moved(batch: Batch, config: AugmentConfig, generators: Draws, grids: Mapping[str, OrganGrid]) -> Batch:
    """A new batch, turned, zoomed, moved and mirrored; the old one is left unchanged.

    Args:
        batch: subjects with volumes whose background is `BACKGROUND`.
        config: largest changes, by organ where it says so.
        generators: one per subject of the batch; each is used for the organs in the order of the vocabulary.
        grids: the organs' grids, for their spacing.
    Raises: ValueError when there is not one generator per subject.
    """
    return _changed(batch, config, generators, grids, _moved)


def augment(batch: Batch, config: AugmentConfig, generators: Draws, grids: Mapping[str, OrganGrid]) -> Batch:
    """A new batch: blurred, under a bias field, with another contrast, and then `scale * volume + offset + noise`.

    Args, Raises: as `moved`; volumes are normalised to unit variance.
    """
    return _changed(batch, config, generators, grids, _augmented)


def _changed(
    batch: Batch, config: AugmentConfig, generators: Draws, grids: Mapping[str, OrganGrid], change: _Change
) -> Batch:
    if len(generators) != len(batch.subjects):
        raise ValueError(f"one generator per subject expected: {len(batch.subjects)}, got {len(generators)}")
    volumes: dict[str, Tensor] = {}
    native: dict[str, NativeVolumes] = {}
    for organ in (organ for organ in batch.organs if organ in batch.rows):
        own, settings = [generators[row] for row in batch.rows[organ].tolist()], config.of(organ)
        if organ in batch.volumes:
            spacing_mm = torch.tensor(grids[organ].spacing_mm, dtype=torch.float64).expand(len(own), 3)
            volumes[organ] = change(batch.volumes[organ], spacing_mm, settings, own)
        else:
            native[organ] = _changed_blocks(batch.native[organ], settings, own, change)
    return Batch(batch.subjects, batch.organs, batch.rows, volumes, native)


def _changed_blocks(volumes: NativeVolumes, config: AugmentConfig, own: Draws, change: _Change) -> NativeVolumes:
    return volumes.changed(
        lambda block: change(
            block.volumes, block.spacing_mm, config, [own[position] for position in block.positions.tolist()]
        )
    )


def _moved(volumes: Tensor, spacing_mm: Tensor, config: AugmentConfig, own: Draws) -> Tensor:
    if config.rotation_deg or config.zoom or config.translation_mm:
        matrices = affine_matrices(
            _drawn(own, config.rotation_deg, 3), 1 + _drawn(own, config.zoom, 1)[:, 0], spacing_mm
        )
        volumes = warp(volumes, matrices, _drawn(own, config.translation_mm, 3) / spacing_mm)
    if any(config.flip):
        chances = np.stack([g.random(3) for g in own])
        volumes = flip(volumes, torch.from_numpy(chances < np.asarray(config.flip)))
    return volumes


def _augmented(volumes: Tensor, spacing_mm: Tensor, config: AugmentConfig, own: Draws) -> Tensor:
    # Drawn first, for streams from before there was anything else to draw.
    scale, offset = _scale_and_offset(own, config).to(volumes.device).unbind(dim=1)
    noise = _noise(own, tuple(volumes.shape[1:])) if config.noise else None
    if config.blur_mm:
        volumes = blur(volumes, _drawn(own, config.blur_mm, 1).abs() / spacing_mm)
    if config.bias:
        volumes = add_bias(volumes, _drawn(own, config.bias, len(BIAS_WAVES)))
    if config.gamma:
        volumes = gamma(volumes, _drawn(own, config.gamma, 1)[:, 0].exp())
    changed = volumes * scale[:, None, None, None] + offset[:, None, None, None]
    return changed if noise is None else changed.add_(noise.to(changed.device), alpha=config.noise)


def _drawn(own: Draws, most: float, count: int) -> Tensor:
    """Uniform in -most to most, float64 [n, count]."""
    return torch.from_numpy(np.stack([most * g.uniform(-1, 1, count) for g in own]))


def _scale_and_offset(own: Draws, config: AugmentConfig) -> Tensor:
    """float32 [n, 2]"""
    factors = np.array([[1 + config.scale * g.uniform(-1, 1), config.offset * g.uniform(-1, 1)] for g in own])
    return torch.from_numpy(factors.astype(np.float32))


def _noise(own: Draws, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32 [n, X, Y, Z]."""
    noise = np.empty((len(own), *shape), dtype=np.float32)
    for volume, generator in zip(noise, own, strict=True):
        generator.standard_normal(out=volume, dtype=np.float32)
    return torch.from_numpy(noise)
