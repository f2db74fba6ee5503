"""One site's training in one round: (parameters, dataset, recipe, who and when) -> what it learned and what it may tell.

Every draw is a function of (seed, site, round, step, subject, purpose): the same task on the same data gives the same bits at
an equal thread count, processor and torch build, and a subject's masks and crops depend on no other subject. The optimiser
starts afresh each round, or goes on from the moments that it is given (`pretrain.keep_moments`); it is the site that keeps them.
The teacher sees a crop as it is, the student the same crop with its intensities augmented, so that targets carry none of the
augmentation's noise.

A scan whose file is missing or changed since it was prepared is found when it is first read, at the start of a round or in
the midst of it: it is dropped for this round, named to the site, and the round goes on with the rest.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from panfm import update
from panfm.config import PretrainConfig, Recipe, Sampler
from panfm.data.augment import augment, moved
from panfm.data.dataset import Batch, DroppedScan, SubjectDataset
from panfm.data.prefetch import prefetched
from panfm.data.sampler import balanced_indices, batch_indices
from panfm.errors import DataError, RunError
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.models.build import build_model, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.precision import computing_in
from panfm.pretrain.accumulation import Part, loss_of_parts, parts_of
from panfm.pretrain.collapse import effective_rank, spread
from panfm.pretrain.moments import Moments, load_moments, moments_of
from panfm.pretrain.objective import constant_guesses, objective_loss
from panfm.pretrain.prototype_step import move_centres
from panfm.pretrain.proximal import anchor_of, pull_towards
from panfm.pretrain.saliency import Saliency, share_entropy
from panfm.pretrain.schedules import learning_rate, organ_mask_at, teacher_momentum, teacher_temperature
from panfm.pretrain.step import Masks, StepLoss, draw_masks, patch_counts, teacher_view
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
    dropped: tuple[DroppedScan, ...] = ()
    """Scans that this round did without; their names are for the site alone, and only their number is in `metrics`."""
    moments: Moments = field(default_factory=dict)
    """The optimiser's, of the parameters that were trained; empty unless the recipe keeps them."""


def train_round(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    dataset: SubjectDataset,
    recipe: Recipe,
    *,
    site: str,
    round_number: int,
    moments: Moments | None = None,
    device: str = "cpu",
    loader_threads: int = 0,
    on_step: OnStep | None = None,
) -> TrainedRound:
    """Train for the recipe's steps.

    Args:
        student, teacher: parameters of trunk, heads and the organs of the dataset, aligned, by name.
        dataset: subjects of the site, each with one organ or more.
        round_number: counted from 1.
        moments: those of an earlier round, from which the optimiser goes on; None: it starts afresh.
        loader_threads: how many read and augment batches ahead of the training; 0: none. It changes no bit of the result.
    Raises: CheckpointError when the parameters do not fit, RunError when the loss is no longer a finite number, DataError
        when no scan that was asked for could be read.
    """
    torch.set_num_threads(recipe.threads)
    started = time.monotonic()
    local = _LocalTraining(student, teacher, dataset, recipe, site=site, round_number=round_number, device=device)
    load_moments(local.optimiser, local.student, moments or {})
    tally = _Tally()
    num_steps = recipe.pretrain.steps_per_round
    batches = _batches(dataset, recipe, stream(recipe.seed, site, round_number, "batches"))
    loaded = prefetched(lambda step: local.load(step, batches[step]), num_steps, loader_threads)
    done = 0
    for step, views in enumerate(loaded):
        if not views.given.subjects:
            continue  # every scan of these subjects was dropped
        loss = local.step(step, views, tally)
        done += 1
        if on_step is not None:
            on_step(step + 1, num_steps, loss)
    if not done:
        raise DataError(f"no scan of this round could be read: {dataset.dropped[0].reason}")
    # An organ of which no batch held a scan has no say: its untouched parameters would count as a vote for no change.
    exercised = (*SHARED_GROUPS, *tally.organs)
    trained = update.clone(keep_groups(dict(local.student.named_parameters()), exercised))
    return TrainedRound(
        deltas=update.subtract(trained, {name: student[name] for name in trained}),
        num_subjects=sum(1 for organs in dataset.organs_of if organs),
        organ_subjects=dict(dataset.num_subjects),
        num_steps=done,
        metrics=tally.metrics(local.last_target, time.monotonic() - started, len(dataset.dropped)),
        dropped=dataset.dropped,
        moments=moments_of(local.optimiser, local.student, trained) if recipe.pretrain.keep_moments else {},
    )


def _batches(dataset: SubjectDataset, recipe: Recipe, generator: np.random.Generator) -> list[list[int]]:
    """Subjects of each step."""
    pretrain = recipe.pretrain
    size, num_steps = pretrain.batch_size, pretrain.steps_per_round
    if pretrain.sampler is Sampler.balanced:
        return balanced_indices(dataset.organs_of, size, num_steps, generator)
    return batch_indices(len(dataset), size, num_steps, generator)


@dataclass(frozen=True, slots=True)
class _Views:
    """One batch, as each of the two sees it."""

    given: Batch
    """The teacher's."""
    seen: Batch
    """The student's: the same places under other intensities."""


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
        self.student = build_model(recipe.model, grids, recipe.pretrain.checkpointing).to(device)
        load_parameters(self.student, student)
        self._teacher = Teacher(build_model(recipe.model, grids).to(device), teacher)
        self.optimiser = make_optimiser(self.student, recipe.pretrain)
        self._anchor = anchor_of(self.student) if recipe.pretrain.proximal else []
        self._dataset, self._recipe, self._device = dataset, recipe, device
        self._site, self._round = site, round_number
        self.last_target: Features | None = None

    def load(self, step: int, indices: Sequence[int]) -> _Views:
        """The batch of one step, augmented, on the device; several threads may load several steps at once."""
        names, augment_by = [self._dataset.subjects[index] for index in indices], self._recipe.pretrain.augment
        batch = self._dataset.batch(indices, self._streams(step, names, "crop"), augment_by.shift_voxels)
        batch, grids = batch.to(self._device), self._recipe.organs
        given = moved(batch, augment_by, self._streams(step, batch.subjects, "move"), grids)
        return _Views(given, augment(given, augment_by, self._streams(step, batch.subjects, "augment"), grids))

    def _streams(self, step: int, names: Sequence[str], purpose: str) -> list[np.random.Generator]:
        return [stream(self._recipe.seed, self._site, self._round, step, name, purpose) for name in names]

    def step(self, step: int, views: _Views, tally: _Tally) -> float:
        """One optimiser step; returns the loss."""
        pretrain, batch = self._recipe.pretrain, views.given
        with computing_in(pretrain.precision, self._device):
            target, saliency = teacher_view(self._teacher.model, batch, pretrain.organ_mask.saliency_blocks)
        masks = self._masks(step, batch, saliency)
        loss = self._backward(step, Part(share=1.0, given=batch, seen=views.seen, target=target, masks=masks))
        gradient_norm = self._optimise(self._run_step(step))
        if loss.centres is not None:
            move_centres(self.student, loss.centres, pretrain.prototypes.centre_momentum)
        tally.add(batch, saliency, masks, loss, gradient_norm)
        self.last_target = target
        return float(loss.total)

    def _backward(self, step: int, whole: Part) -> StepLoss:
        """The loss of a step, its gradients put where the optimiser finds them; part by part, if the recipe says so."""
        pretrain = self._recipe.pretrain
        parts, guesses = parts_of(whole, pretrain.accumulate), None
        if len(parts) > 1:
            patch = self._recipe.model.patch
            guesses = constant_guesses(whole.given, whole.target, whole.masks, pretrain.objective, patch)
        self.optimiser.zero_grad(set_to_none=True)
        losses: list[StepLoss] = []
        for part in parts:
            loss = self._loss(step, part, guesses)
            self._refuse_infinite(float(loss.total.detach()), step)
            torch.autograd.backward(part.share * loss.total)
            losses.append(replace(loss, total=loss.total.detach()))
        return loss_of_parts(losses, [part.share for part in parts])

    def _loss(self, step: int, part: Part, guesses: Mapping[str, Tensor] | None) -> StepLoss:
        pretrain, run_step = self._recipe.pretrain, self._run_step(step)
        temperature = teacher_temperature(run_step, self._recipe.total_steps, pretrain.prototypes)
        with computing_in(pretrain.precision, self._device):
            return objective_loss(
                self.student,
                self._teacher.model,
                part.given,
                part.seen,
                part.target,
                part.masks,
                pretrain,
                temperature,
                guesses,
            )

    def _refuse_infinite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            raise RunError(
                f"training diverged: the loss of step {step + 1} in round {self._round} should be a finite number, "
                f"got {loss}; lower pretrain.learning_rate"
            )

    def _run_step(self, step: int) -> int:
        """The steps of the run before this one, counted as if the site had been there in every round."""
        return (self._round - 1) * self._recipe.pretrain.steps_per_round + step

    def _masks(self, step: int, batch: Batch, saliency: Saliency) -> Masks:
        pretrain = self._recipe.pretrain
        organs, patches = (self._streams(step, batch.subjects, purpose) for purpose in ("organ mask", "patch mask"))
        counts = {o: patch_counts(self._recipe.organs[o], self._recipe.model.patch) for o in batch.rows}
        organ_mask = organ_mask_at(self._run_step(step), self._recipe.total_steps, pretrain.organ_mask)
        return draw_masks(batch, saliency, counts, organ_mask, pretrain.patch_mask, organs, patches)

    def _optimise(self, run_step: int) -> float:
        """One step along the gradients that there are; returns their norm."""
        pretrain, total = self._recipe.pretrain, self._recipe.total_steps
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(run_step, total, pretrain)
        if pretrain.proximal:
            pull_towards(self.student, self._anchor, pretrain.proximal)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), pretrain.clip_norm)
        self.optimiser.step()
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

    def metrics(self, target: Features | None, seconds: float, dropped_scans: int) -> TrainMetrics:
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
            dropped_scans=dropped_scans,
        )
