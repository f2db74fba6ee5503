"""Pixel reconstruction on a batch of ragged subjects: the encoder gets visible patches of visible organs, the decoder the rest.

The decoder reads a subject's tokens together, its subject token among them, so hidden patches of one organ may be read off
another, and the subject token's attention is trained: Saliency-Guided Masking asks it what the model leans on. The teacher is
needed for that question alone. Means are those of `step`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from panfm.config import PixelConfig
from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.pixel_loss import pixel_loss, pixel_targets
from panfm.pretrain.step import Masks, StepLoss, organ_term, shown_to_student, subject_means, visible_scans


def pixel_step(
    student: PanOrganModel,
    given: Batch,
    seen: Batch,
    target: Features,
    masks: Masks,
    config: PixelConfig,
    guesses: Mapping[str, Tensor] | None = None,
) -> StepLoss:
    """All terms for one batch.

    Args:
        given: the crops as they are, of which the hidden voxels are to be told.
        seen: the same crops as the student is shown them.
        target: the teacher's features, for term (b) alone.
        guesses: `mean_voxels` of the batch that this one is a part of; None: this one is whole.
    """
    num_subjects, shown, scans = len(seen.subjects), shown_to_student(seen, masks), given.scans
    features = student.encode_visible(shown.scans, shown.rows, num_subjects, shown.patches)
    predicted = student.decode(features, shown.rows, shown.patches)
    losses: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    for organ, keep in shown.places.items():
        mask = shown.patches[organ]
        wanted = pixel_targets(scans[organ][keep], student.config.patch)[mask]
        losses[organ] = pixel_loss(predicted[organ][mask], wanted).reshape(len(keep), -1).mean(1)
        guess = wanted.mean(0) if guesses is None else guesses[organ]
        constants[organ] = pixel_loss(guess, wanted).reshape(len(keep), -1).mean(1)
    total = patch = subject_means(losses, shown.rows, num_subjects).mean()
    organ_mean, eligible = None, 0
    if config.organ > 0:
        term, eligible = organ_term(student, seen, features, target, masks.organs)
        total = total + config.organ * term
        organ_mean = term.detach() * num_subjects / eligible if eligible else None
    return StepLoss(
        total=total,
        patch=patch.detach(),
        organ=organ_mean,
        organ_subjects=eligible,
        collapse=float(subject_means(constants, shown.rows, num_subjects).mean()),
    )


def mean_voxels(given: Batch, masks: Masks, patch: int) -> dict[str, Tensor]:
    """What a constant would best say of each visible organ: the mean of its hidden patches' targets, [p * p * p]."""
    scans = given.scans
    return {
        organ: pixel_targets(scans[organ][keep], patch)[masks.patches[organ][keep]].mean(0)
        for organ, keep in visible_scans(given, masks).items()
    }
