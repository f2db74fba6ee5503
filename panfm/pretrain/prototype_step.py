"""The prototype objective on a batch of ragged subjects: the subject token's cross-entropy, and that of hidden patches.

The teacher sees all organs of a subject, the crop as it is; the student the augmented crop without masked organs and hidden
patches. Means are those of `step`: over a scan's hidden patches, a subject's visible organs, and subjects. So are the means of
the teacher's logits that move the centres, which makes a centre additive over subjects: that of several sites is the
mean of theirs by the weights of their subjects. Centres are moved by one named call after the step and used one step late, as
in DINO.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch
from torch import Tensor

from panfm.config import PrototypeConfig
from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.prototypes import PrototypeHead
from panfm.pretrain.koleo import koleo_loss
from panfm.pretrain.prototype_loss import assignments, moved_centre, prototype_loss
from panfm.pretrain.step import Centres, Masks, Shown, StepLoss, organ_term, shown_to_student, subject_means


def prototype_step(
    student: PanOrganModel,
    teacher: PanOrganModel,
    seen: Batch,
    target: Features,
    masks: Masks,
    config: PrototypeConfig,
    teacher_temperature: float,
) -> StepLoss:
    """All terms for one batch.

    Args:
        teacher: whose head turns its features into logits.
        seen: what the student is shown.
        target: the teacher's features of the same scans.
        teacher_temperature: at this step.
    """
    shown = shown_to_student(seen, masks)
    features: Features = student(shown.scans, shown.rows, len(seen.subjects), shown.patches)
    theirs, own = _head(teacher), _head(student)
    with torch.no_grad():
        subject_logits = theirs(target.subject)
    wanted = assignments(subject_logits, own.subject_centre, teacher_temperature)
    subject = prototype_loss(own(features.subject), wanted, config.student_temperature).mean()
    patch, patch_mean = _patch_term(own, theirs, features, target, shown, config, teacher_temperature)
    total = config.subject * subject + config.patch * patch
    if config.organ > 0:
        total = total + config.organ * organ_term(student, seen, features, target, masks.organs)[0]
    if config.koleo > 0 and len(seen.subjects) > 1:  # one subject alone has no neighbour
        total = total + config.koleo * koleo_loss(features.subject)
    return StepLoss(
        total=total,
        patch=patch.detach(),
        organ=subject.detach(),
        organ_subjects=len(seen.subjects),
        collapse=math.log(len(own.weight)),
        centres=Centres(subject=subject_logits.mean(0), patch=patch_mean),
    )


@torch.no_grad()
def move_centres(student: PanOrganModel, batch: Centres, momentum: float) -> None:
    """Let the student's centres follow the means of one batch; the teacher's copies follow the student and are read by nobody."""
    head = _head(student)
    for centre, mean in ((head.subject_centre, batch.subject), (head.patch_centre, batch.patch)):
        centre.copy_(moved_centre(centre, mean, momentum))


def _patch_term(
    own: PrototypeHead,
    theirs: PrototypeHead,
    features: Features,
    target: Features,
    shown: Shown,
    config: PrototypeConfig,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of hidden patches, and the mean of the teacher's logits of them [K]; heads see no other patch."""
    losses: dict[str, Tensor] = {}
    logit_means: dict[str, Tensor] = {}
    for organ, keep in shown.places.items():
        mask = shown.patches[organ]
        with torch.no_grad():
            logits = theirs(target.patches[organ][keep][mask])
        wanted = assignments(logits, own.patch_centre, teacher_temperature)
        loss = prototype_loss(own(features.patches[organ][mask]), wanted, config.student_temperature)
        losses[organ] = loss.reshape(len(keep), -1).mean(1)
        logit_means[organ] = logits.reshape(len(keep), -1, logits.shape[-1]).mean(1)
    num_subjects = len(features.subject)
    means = subject_means(logit_means, shown.rows, num_subjects).mean(0)
    return subject_means(losses, shown.rows, num_subjects).mean(), means


def _head(model: PanOrganModel) -> PrototypeHead:
    head = model.heads.prototypes
    assert head is not None, "the recipe's check gives the model the head of its objective"
    return head
