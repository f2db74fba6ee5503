"""One site's training in one round with differential privacy: what `local_round` is without.

It must run once for each charge of the ledger, to its end or not at all: samples and noise come from the operating system, so
a round that is run again is another one and costs again. So do masks and crops, by a secret that lives as long as the round.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panfm.config import PrivacyConfig, Recipe
from panfm.data.augment import augment, moved
from panfm.data.dataset import SubjectDataset
from panfm.pretrain.private_step import Part, PrivateTraining, Views
from panfm.privacy.sampling import physical_batches, poisson_sample
from panfm.randomness import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateRound:
    """What a round gave; all of it may leave the site."""

    deltas: dict[str, Tensor]
    """fp32 on the CPU, by parameter name: every trained parameter of the declared organs, whoever was sampled."""
    num_steps: int


def train_private_round(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    dataset: SubjectDataset,
    recipe: Recipe,
    privacy: PrivacyConfig,
    *,
    round_number: int,
    device: str = "cpu",
) -> PrivateRound:
    """Train for the recipe's steps, each charged as one draw at `privacy.sampling_rate`.

    Args:
        student, teacher: parameters of trunk, heads and the organs of the dataset, aligned, by name.
        dataset: subjects of the site; its organs are those that the site declares.
        round_number: counted from 1.
    Raises: ConfigError when the recipe cannot be had with privacy, before anything was computed on a subject; CheckpointError
        when the parameters do not fit; RunError when they are no longer finite.
    """
    torch.set_num_threads(recipe.threads)
    training = PrivateTraining(student, teacher, dataset.organs, recipe, privacy, device=device)
    return run_private_round(training, dataset, round_number)


def run_private_round(
    training: PrivateTraining,
    dataset: SubjectDataset,
    round_number: int,
    on_step: Callable[[int, int], None] = lambda step, num_steps: None,
) -> PrivateRound:
    """The part of `train_private_round` that looks at subjects, and so the part that is charged.

    Args:
        training: just begun; of what could fail, it has been through all that needs no subject.
        on_step: called after each step with its number, from 1, and the number of steps: all that a step may tell.
    Raises: RunError when the parameters are no longer finite.
    """
    loader = _Loader(dataset, training.recipe, training.privacy.views, training.device)
    steps = training.recipe.pretrain.steps_per_round
    for step in range(steps):
        sample = poisson_sample(len(dataset), training.privacy.sampling_rate)
        released = training.release(loader.parts(sample.tolist(), step))
        training.finish(released, (round_number - 1) * steps + step)
        on_step(step + 1, steps)
    return PrivateRound(deltas=training.deltas(), num_steps=steps)


class _Loader:
    """A site's subjects as the two see them; its draws follow from a secret, the step and the subject, and from nobody else."""

    def __init__(self, dataset: SubjectDataset, recipe: Recipe, num_views: int, device: str) -> None:
        self._dataset, self._recipe, self._num_views, self._device = dataset, recipe, num_views, device
        self._secret = int.from_bytes(os.urandom(16))

    def parts(self, sample: Sequence[int], step: int) -> Iterator[Part]:
        """A sample in physical batches of at most `pretrain.batch_size` subjects."""
        for places in physical_batches(sample, self._recipe.pretrain.batch_size):
            views = self._all_views(places, step)
            held = set(views[0].given.subjects)
            # Who has no scan left that can be read is as if not there.
            kept = [place for place in places if self._dataset.subjects[place] in held]
            if kept:
                yield kept, views

    def _all_views(self, places: Sequence[int], step: int) -> list[Views]:
        """Every view of the same subjects: where the last scan of one was dropped between two views, all are drawn again."""
        while True:
            views = [self._views(places, step, view) for view in range(self._num_views)]
            if len({one.given.subjects for one in views}) == 1:
                return views

    def _views(self, places: Sequence[int], step: int, view: int) -> Views:
        names, change, grids = (
            [self._dataset.subjects[place] for place in places],
            self._recipe.pretrain.augment,
            self._recipe.organs,
        )
        batch = self._dataset.batch(places, self._draws(step, view, names, "crop"), change.shift_voxels)
        batch = batch.to(self._device)
        given = moved(batch, change, self._draws(step, view, batch.subjects, "move"), grids)
        return Views(
            given=given,
            seen=augment(given, change, self._draws(step, view, batch.subjects, "augment"), grids),
            organ_draws=self._draws(step, view, batch.subjects, "organ mask"),
            patch_draws=self._draws(step, view, batch.subjects, "patch mask"),
        )

    def _draws(self, step: int, view: int, names: Sequence[str], purpose: str) -> list[np.random.Generator]:
        return [stream(self._secret, step, view, name, purpose) for name in names]
