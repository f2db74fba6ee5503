"""One site's training in one round: (parameters, dataset, recipe, who and when) -> what it learned and what it may tell.

Every draw is a function of (seed, site, round, step, subject, purpose): the same task on the same data gives the same bits at
an equal thread count, processor and torch build, and a subject's masks and crops depend on no other subject. The optimiser
starts afresh each round, so a site keeps no training state of its own. The teacher sees a crop as it is, the student the same
crop augmented, so that targets carry none of the augmentation's noise.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from panfm import update
from panfm.config import PretrainConfig, Recipe
from panfm.data.augment import augment
from panfm.data.dataset import Batch, SubjectDataset, batch_indices
from panfm.errors import RunError
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.models.build import build_model, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.collapse import effective_rank, spread
from panfm.pretrain.saliency import Saliency, share_entropy
from panfm.pretrain.schedules import learning_rate, teacher_momentum
from panfm.pretrain.step import Masks, StepLoss, draw_masks, patch_counts, step_loss, teacher_view
from panfm.pretrain.teacher import Teacher
from panfm.protocol import TrainMetrics
from panfm.randomness import stream

OnStep = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedRound:
    """What a round of training gave."""

    deltas: dict[str, Tensor]
    """fp32 on the CPU, by parameter name; groups that no subject of the site exercised are absent."""
    num_subjects: int
    organ_subjects: dict[str, int]
    num_steps: int
    metrics: TrainMetrics


def train_round(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    dataset: SubjectDataset,
    recipe: Recipe,
    *,
    site: str,
    round_number: int,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> TrainedRound:
    """Train for the recipe's steps.

    Args:
        student, teacher: parameters of trunk, heads and the organs of the dataset, aligned, by name.
        dataset: subjects of the site, each with one organ or more.
        round_number: counted from 1.
    Raises: CheckpointError when the parameters do not fit, RunError when the loss is no longer a finite number.
    """
    torch.set_num_threads(recipe.threads)
    started = time.monotonic()
    local = _LocalTraining(student, teacher, dataset, recipe, site=site, round_number=round_number, device=device)
    tally = _Tally()
    num_steps = recipe.pretrain.steps_per_round
    shuffle = stream(recipe.seed, site, round_number, "batches")
    batches = batch_indices(len(dataset), recipe.pretrain.batch_size, num_steps, shuffle)
    for step, indices in enumerate(batches):
        loss = local.step(step, indices, tally)
        if on_step is not None:
            on_step(step + 1, num_steps, loss)
    # An organ of which no batch held a scan has no say: its untouched parameters would count as a vote for no change.
    exercised = (*SHARED_GROUPS, *tally.organs)
    trained = update.clone(keep_groups(dict(local.student.named_parameters()), exercised))
    return TrainedRound(
        deltas=update.subtract(trained, {name: student[name] for name in trained}),
        num_subjects=len(dataset),
        organ_subjects=dict(dataset.num_subjects),
        num_steps=num_steps,
        metrics=tally.metrics(local.last_target, time.monotonic() - started),
    )


class _LocalTraining:
    """Student, teacher and optimiser of one round."""

    def __init__(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        dataset: SubjectDataset,
        recipe: Recipe,
        *,
        site: str,
        round_number: int,
        device: str,
    ) -> None:
        grids = {organ: recipe.organs[organ] for organ in dataset.organs}
        self.student = build_model(recipe.model, grids).to(device)
        load_parameters(self.student, student)
        self._teacher = Teacher(build_model(recipe.model, grids).to(device), teacher)
        self._optimiser = make_optimiser(self.student, recipe.pretrain)
        self._dataset, self._recipe, self._device = dataset, recipe, device
        self._site, self._round = site, round_number
        self.last_target: Features | None = None

    def step(self, step: int, indices: list[int], tally: _Tally) -> float:
        """One optimiser step on the subjects at these positions; returns the loss."""
        pretrain = self._recipe.pretrain
        names = [self._dataset.subjects[index] for index in indices]
        crops, augments, organs, patches = (
            [stream(self._recipe.seed, self._site, self._round, step, name, purpose) for name in names]
            for purpose in ("crop", "augment", "organ mask", "patch mask")
        )
        batch = self._dataset.batch(indices, crops, pretrain.augment.shift_voxels)
        seen = augment(batch, pretrain.augment, augments).to(self._device)
        batch = batch.to(self._device)
        target, saliency = teacher_view(self._teacher.model, batch, pretrain.organ_mask.saliency_blocks)
        counts = {o: patch_counts(self._recipe.organs[o], self._recipe.model.patch) for o in batch.rows}
        masks = draw_masks(batch, saliency, counts, pretrain.organ_mask, pretrain.patch_mask, organs, patches)
        loss = step_loss(self.student, seen, target, masks, pretrain.loss)
        value = float(loss.total.detach())
        if not math.isfinite(value):
            raise RunError(
                f"training diverged: the loss of step {step + 1} in round {self._round} should be a finite number, "
                f"got {value}; lower pretrain.learning_rate"
            )
        gradient_norm = self._optimise(loss.total, step)
        tally.add(batch, saliency, masks, loss, gradient_norm)
        self.last_target = target
        return value

    def _optimise(self, loss: Tensor, step: int) -> float:
        pretrain, total = self._recipe.pretrain, self._recipe.total_steps
        run_step = (self._round - 1) * pretrain.steps_per_round + step
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(run_step, total, pretrain)
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), pretrain.clip_norm)
        self._optimiser.step()
        self._teacher.follow(self.student, teacher_momentum(run_step, total, pretrain))
        return float(norm)


def make_optimiser(model: PanOrganModel, config: PretrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and neither vectors nor tokens; parameters without a gradient are left alone."""
    parameters = [parameter for _, parameter in sorted(model.named_parameters())]
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


@dataclass(slots=True)
class _Sums:
    """Running sums of one organ."""

    scans: int = 0
    masked: int = 0
    share: float = 0.0
    lift: float = 0.0


@dataclass(slots=True)
class _Tally:
    """What a round's steps add up to."""

    steps: list[tuple[float, float, float, float]] = field(default_factory=list)
    """(total, patch, collapse, gradient norm) of each step."""
    organ_losses: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    organs: dict[str, _Sums] = field(default_factory=dict)

    def add(self, batch: Batch, saliency: Saliency, masks: Masks, loss: StepLoss, gradient_norm: float) -> None:
        """Count one step."""
        self.steps.append((float(loss.total.detach()), float(loss.patch), loss.collapse, gradient_norm))
        if loss.organ is not None:
            self.organ_losses.append(float(loss.organ))
        self.entropies += share_entropy(saliency).tolist()
        for organ, rows in batch.rows.items():
            column, sums = batch.organs.index(organ), self.organs.setdefault(organ, _Sums())
            sums.scans += rows.numel()
            sums.masked += int(masks.organs[rows.cpu(), column].sum())
            sums.share += float(saliency.share[rows, column].sum())
            sums.lift += float(saliency.lift[rows, column].sum())

    def metrics(self, target: Features | None, seconds: float) -> TrainMetrics:
        """Means over the round; rank and spread of the teacher's patch tokens in the last batch."""
        total, patch, collapse, gradient = (float(mean) for mean in np.mean(self.steps, axis=0))
        tokens = {organ: patches.flatten(0, 1) for organ, patches in target.patches.items()} if target else {}
        return TrainMetrics(
            loss=total,
            loss_patch=patch,
            loss_organ=float(np.mean(self.organ_losses)) if self.organ_losses else None,
            collapse_loss=collapse,
            gradient_norm=gradient,
            share={organ: sums.share / sums.scans for organ, sums in self.organs.items()},
            lift={organ: sums.lift / sums.scans for organ, sums in self.organs.items()},
            masked_rate={organ: sums.masked / sums.scans for organ, sums in self.organs.items()},
            share_entropy=float(np.mean(self.entropies)) if self.entropies else None,
            effective_rank={organ: effective_rank(points) for organ, points in tokens.items()},
            spread={organ: spread(points) for organ, points in tokens.items()},
            seconds=seconds,
        )
