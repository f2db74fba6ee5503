"""The recipe's objective: which loss a step has. All three take the same views and the same masks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.config import Objective, PretrainConfig
from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.pixel_step import pixel_step
from panfm.pretrain.prototype_step import prototype_step
from panfm.pretrain.step import Masks, StepLoss, step_loss


def objective_loss(
    student: PanOrganModel,
    teacher: PanOrganModel,
    given: Batch,
    seen: Batch,
    target: Features,
    masks: Masks,
    config: PretrainConfig,
    teacher_temperature: float,
) -> StepLoss:
    """The loss of one batch.

    Args:
        given, seen: the same subjects, scans and places as the teacher and as the student see them.
        target: the teacher's features of `given`.
        teacher_temperature: of prototypes, at this step.
    """
    if config.objective is Objective.prototypes:
        return prototype_step(student, teacher, seen, target, masks, config.prototypes, teacher_temperature)
    if config.objective is Objective.pixels:
        return pixel_step(student, given, seen, target, masks, config.pixels)
    return step_loss(student, seen, target, masks, config.loss)
