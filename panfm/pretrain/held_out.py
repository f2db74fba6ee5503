"""The training loss on subjects that a site holds out, and what the teacher attends to in them; nothing is trained.

Every draw is a function of (seed, site, subject, purpose) and not of the round: each evaluation hides the same patches of the
same crops from the student, so that two rounds differ by the model alone; what goes along a schedule stands as it does at
the run's end. Crops are the middle of what is stored, and nothing is augmented. The loss is that of the recipe's objective.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import Batch, SubjectDataset
from panfm.errors import DataError
from panfm.models.build import build_model, load_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain.objective import objective_loss
from panfm.pretrain.saliency import Saliency, share_entropy
from panfm.pretrain.step import StepLoss, draw_masks, patch_counts, teacher_view
from panfm.randomness import stream


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoss:
    """What the held-out subjects of one site say of a model; the fields of `panfm.protocol.EvaluationMetrics` of these names."""

    num_subjects: int
    organ_subjects: dict[str, int]
    loss: float
    loss_patch: float
    loss_organ: float | None
    collapse_loss: float
    share: dict[str, float]
    lift: dict[str, float]
    share_entropy: float | None


@torch.no_grad()
def held_out_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    dataset: SubjectDataset,
    recipe: Recipe,
    *,
    site: str,
    device: str = "cpu",
) -> HeldOutLoss:
    """Losses and shares, each a mean over subjects.

    Args:
        student, teacher: parameters of trunk, heads and the organs of the dataset, by name.
        dataset: the subjects that are held out; a scan that cannot be read is dropped, as in training.
    Raises: CheckpointError when the parameters do not fit, DataError when no scan could be read.
    """
    grids = {organ: recipe.organs[organ] for organ in dataset.organs}
    both = (build_model(recipe.model, grids).to(device), build_model(recipe.model, grids).to(device))
    for model, parameters in zip(both, (student, teacher), strict=True):
        load_parameters(model, parameters)
    sums = _Sums()
    for start in range(0, len(dataset), recipe.pretrain.batch_size):
        indices = range(start, min(start + recipe.pretrain.batch_size, len(dataset)))
        batch = dataset.batch(indices, _streams(recipe, site, [dataset.subjects[i] for i in indices], "visit"))
        if batch.subjects:
            sums.add(batch, *_look(both, batch.to(device), recipe, site))
    if not sums.subjects:
        raise DataError(f"no scan that is held out could be read: {dataset.dropped[0].reason}")
    return sums.means()


def _streams(recipe: Recipe, site: str, subjects: Sequence[str], purpose: str) -> list[np.random.Generator]:
    return [stream(recipe.seed, site, "held out", subject, purpose) for subject in subjects]


def _look(
    models: tuple[PanOrganModel, PanOrganModel], batch: Batch, recipe: Recipe, site: str
) -> tuple[StepLoss, Saliency]:
    """Student and teacher before one batch, with masks as in training."""
    student, teacher = models
    pretrain = recipe.pretrain
    target, saliency = teacher_view(teacher, batch, pretrain.organ_mask.saliency_blocks)
    counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in batch.rows}
    organs, patches = (_streams(recipe, site, batch.subjects, purpose) for purpose in ("organ mask", "patch mask"))
    masks = draw_masks(batch, saliency, counts, pretrain.organ_mask, pretrain.patch_mask, organs, patches)
    temperature = pretrain.prototypes.final_teacher_temperature
    return objective_loss(student, teacher, batch, batch, target, masks, pretrain, temperature), saliency


@dataclass(slots=True)
class _Sums:
    """Sums over the subjects seen so far."""

    subjects: int = 0
    losses: list[tuple[int, float, float, float]] = field(default_factory=list)
    """(subjects, total, patch, collapse) of each batch."""
    organ_losses: list[tuple[int, float]] = field(default_factory=list)
    """(subjects, `StepLoss.organ` over them) of each batch that has any."""
    entropies: list[float] = field(default_factory=list)
    scans: dict[str, int] = field(default_factory=dict)
    share: dict[str, float] = field(default_factory=dict)
    lift: dict[str, float] = field(default_factory=dict)

    def add(self, batch: Batch, loss: StepLoss, saliency: Saliency) -> None:
        """Count one batch."""
        number = len(batch.subjects)
        self.subjects += number
        self.losses.append((number, float(loss.total), float(loss.patch), loss.collapse))
        if loss.organ is not None:
            self.organ_losses.append((loss.organ_subjects, float(loss.organ)))
        self.entropies += share_entropy(saliency).tolist()
        for organ, rows in batch.rows.items():
            column = batch.organs.index(organ)
            self.scans[organ] = self.scans.get(organ, 0) + rows.numel()
            for sums, of in ((self.share, saliency.share), (self.lift, saliency.lift)):
                sums[organ] = sums.get(organ, 0.0) + float(of[:, column].sum())

    def means(self) -> HeldOutLoss:
        """Over all subjects; those of an organ over the subjects that have it."""
        loss, patch, collapse = (sum(row[0] * row[place] for row in self.losses) / self.subjects for place in (1, 2, 3))
        eligible = sum(number for number, _ in self.organ_losses)
        return HeldOutLoss(
            num_subjects=self.subjects,
            organ_subjects=self.scans,
            loss=loss,
            loss_patch=patch,
            loss_organ=sum(number * value for number, value in self.organ_losses) / eligible if eligible else None,
            collapse_loss=collapse,
            share={organ: total / self.scans[organ] for organ, total in self.share.items()},
            lift={organ: total / self.scans[organ] for organ, total in self.lift.items()},
            share_entropy=float(np.mean(self.entropies)) if self.entropies else None,
        )
