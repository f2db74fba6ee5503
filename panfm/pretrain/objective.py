"""The recipe's objective: which loss a step has. All three take the same views and the same masks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from panfm.config import Objective, PretrainConfig
from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.pixel_step import mean_voxels, pixel_step
from panfm.pretrain.prototype_step import prototype_step
from panfm.pretrain.step import Masks, StepLoss, mean_targets, step_loss


def objective_loss(
    student: PanOrganModel,
    teacher: PanOrganModel,
    given: Batch,
    seen: Batch,
    target: Features,
    masks: Masks,
    config: PretrainConfig,
    teacher_temperature: float,
    guesses: Mapping[str, Tensor] | None = None,
) -> StepLoss:
    """The loss of one batch.

    Args:
        given, seen: the same subjects, scans and places as the teacher and as the student see them.
        target: the teacher's features of `given`.
        teacher_temperature: of prototypes, at this step.
        guesses: `constant_guesses` of the batch that this one is a part of; None: this one is whole.
    """
    if config.objective is Objective.prototypes:
        return prototype_step(student, teacher, seen, target, masks, config.prototypes, teacher_temperature)
    if config.objective is Objective.pixels:
        return pixel_step(student, given, seen, target, masks, config.pixels, guesses)
    return step_loss(student, seen, target, masks, config.loss, guesses)


def constant_guesses(
    given: Batch, target: Features, masks: Masks, objective: Objective, patch: int
) -> dict[str, Tensor]:
    """Each visible organ's mean target over a batch, by which `StepLoss.collapse` is told; prototypes need none.

    It is the one figure of a step that is no mean over subjects, so that parts of a batch must be told it.
    """
    if objective is Objective.prototypes:
        return {}
    return mean_voxels(given, masks, patch) if objective is Objective.pixels else mean_targets(given, target, masks)
