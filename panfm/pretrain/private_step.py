"""Training with subject-level differential privacy: who is trained, what a step may see, and what becomes of its noised gradient.

A step: a Poisson sample of subjects; in physical batches, the loss of each subject in the dense layout and its gradient; their
clipped sum, noised, over a public denominator (`panfm.privacy.dp_step`); AdamW; the teacher follows. After the noise all is
arithmetic on what was released. Nothing else of a step is told to anybody: no loss, no norm, no number of subjects.

Refused at the start: scans in their own spacing, which the dense layout cannot hold; layers that couple or remember subjects;
and losses that do, which shows when made-up subjects are replaced and another one's loss moves.
Legend: B subjects, O organs, L tokens, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import numpy as np
import torch
from torch import Tensor

from panfm import update
from panfm.config import PrivacyConfig, PrivacyMode, Recipe
from panfm.data.dataset import Batch
from panfm.errors import ConfigError, RunError
from panfm.models.build import build_model, load_parameters
from panfm.models.dense import DenseModel
from panfm.pretrain.dense_step import (
    DenseBatch,
    DenseMasks,
    dense_batch,
    dense_teacher_view,
    draw_dense_masks,
    subject_losses,
)
from panfm.pretrain.local_round import make_optimiser
from panfm.pretrain.private_scope import refuse_recipe, trained_names
from panfm.pretrain.proximal import anchor_of, pull_towards
from panfm.pretrain.schedules import learning_rate, teacher_momentum
from panfm.pretrain.step import patch_counts
from panfm.pretrain.teacher import Teacher
from panfm.privacy.dp_step import mean_of_views, noised_mean
from panfm.privacy.subject_gradients import SubjectGradients
from panfm.randomness import stream

_ROUNDING = 1e-6
"""By which a loss may differ between two runs of a GPU; on a CPU nothing does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Some subjects as teacher and student see them once, and the draws of their masks, a generator for each subject."""

    given: Batch
    """The teacher's."""
    seen: Batch
    """The student's: the same subjects, scans and places under other intensities."""
    organ_draws: Sequence[np.random.Generator]
    patch_draws: Sequence[np.random.Generator]


Part = tuple[Sequence[int], Sequence[Views]]
"""Some subjects of a sample by their places in the dataset, and one or more views of them, in that order."""
Losses = Callable[[DenseModel, DenseBatch, Tensor, DenseMasks], Tensor]
"""Student, what it is shown, the teacher's normalised features [B, L, E], masks -> the loss of each subject [B]."""


def recipe_losses(recipe: Recipe) -> Losses:
    """The objective of a recipe."""

    def losses(student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        return subject_losses(student, seen, target, masks, recipe.pretrain.loss)

    return losses


def losses_of(
    student: DenseModel, teacher: DenseModel, views: Views, recipe: Recipe, losses: Losses
) -> Callable[[], Tensor]:
    """What computes the loss of each subject [B]: teacher and masks are done with, the student's pass is still to be."""
    pretrain, organs = recipe.pretrain, views.given.organs
    shapes = {organ: recipe.organs[organ].shape for organ in organs}
    seen, given = dense_batch(views.seen, shapes), dense_batch(views.given, shapes)
    target, saliency = dense_teacher_view(teacher, given, pretrain.organ_mask.saliency_blocks)
    masks = draw_dense_masks(
        student.layout,
        saliency,
        {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in organs},
        pretrain.organ_mask,
        pretrain.patch_mask,
        views.organ_draws,
        views.patch_draws,
    )
    return lambda: losses(student, seen, target, masks)


class PrivateTraining:
    """Student, teacher and optimiser of one round with privacy; the only state that outlives a step."""

    def __init__(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        organs: Sequence[str],
        recipe: Recipe,
        privacy: PrivacyConfig,
        *,
        device: str = "cpu",
        losses: Losses | None = None,
    ) -> None:
        """Begin a round.

        Args:
            student, teacher: parameters of trunk, heads and these organs, aligned, by name.
            organs: all that the site declares, in the order of the recipe.
            losses: the objective; None: `dense_step.subject_losses` with the recipe's weights.
        Raises: ConfigError when recipe, model or objective cannot be had with privacy, CheckpointError when the parameters do
            not fit.
        """
        refuse_recipe(recipe, privacy, organs)
        self.recipe, self.privacy, self.device, self._organs = recipe, privacy, device, tuple(organs)
        self._losses = losses or recipe_losses(recipe)
        grids = {organ: recipe.organs[organ] for organ in organs}
        self.student = build_model(recipe.model, grids).to(device)
        load_parameters(self.student, student)
        self.teacher = Teacher(build_model(recipe.model, grids).to(device), teacher)
        self.trained = self._only_trained(privacy.mode)
        self._start = {name: student[name] for name in self.trained}
        self.optimiser = make_optimiser(self.student, recipe.pretrain)
        self._anchor = anchor_of(self.student) if recipe.pretrain.proximal else []
        self._seeing, self._knowing = DenseModel(self.student), DenseModel(self.teacher.model)
        self._gradients = SubjectGradients(self._seeing, self.trained)
        self._refuse_coupling(device)

    def release(self, parts: Iterable[Part]) -> dict[str, Tensor]:
        """The noised mean gradient of a sample: all that a step may use of it.

        Args:
            parts: the sample in physical batches; none for a sample that holds nobody.
        """
        computed = ((places, partial(self.rows, views)) for places, views in parts)
        return noised_mean(computed, self.trained, self.privacy)

    def rows(self, views: Sequence[Views]) -> dict[str, Tensor]:
        """Each subject's own gradient, the mean over its views, neither clipped nor noised: for `release` alone."""
        return mean_of_views([self._gradients.of(self._losses_of(view)) for view in views])

    def subject_losses(self, views: Views) -> Tensor:
        """The loss of each subject [B]; not to be told either: for those who check the step."""
        return self._losses_of(views)()

    def finish(self, released: Mapping[str, Tensor], run_step: int) -> None:
        """Go one step along what was released.

        Args:
            run_step: steps of the run before this one.
        Raises: RunError when the parameters are no longer finite.
        """
        pretrain, total = self.recipe.pretrain, self.recipe.total_steps
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(run_step, total, pretrain)
        for name, parameter in self.trained.items():
            parameter.grad = released[name].to(parameter)
        if pretrain.proximal:
            pull_towards(self.student, self._anchor, pretrain.proximal)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for name, parameter in self.trained.items():
            if not bool(torch.isfinite(parameter).all()):
                raise RunError(f"training diverged: {name} should be finite numbers; lower pretrain.learning_rate")
        self.teacher.follow(self.student, teacher_momentum(run_step, total, pretrain))

    def deltas(self) -> dict[str, Tensor]:
        """What the steps so far made of the trained parameters, less their beginning: fp32 on the CPU, by name."""
        trained = update.clone({name: parameter.detach() for name, parameter in self.trained.items()})
        return update.subtract(trained, self._start)

    def _only_trained(self, mode: PrivacyMode) -> dict[str, torch.nn.Parameter]:
        parameters = dict(self.student.named_parameters())
        names = trained_names(parameters, mode, self.recipe, self._organs)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        return {name: parameters[name] for name in names}

    def _losses_of(self, views: Views) -> Callable[[], Tensor]:
        return losses_of(self._seeing, self._knowing, views, self.recipe, self._losses)

    def _refuse_coupling(self, device: str) -> None:
        """Raises: ConfigError when one made-up subject's loss moves with another one."""
        found = [self._made_up_losses(other, device) for other in Other]
        if not all(torch.allclose(losses[0], found[0][0], rtol=_ROUNDING, atol=0.0) for losses in found):
            raise ConfigError(
                "the objective couples subjects: one subject's loss moved when the others of its batch were replaced, so no "
                "clipping bounds what a subject adds; with privacy use losses and targets of each subject's own (no centring, no "
                "Sinkhorn, no batch statistics)"
            )

    @torch.no_grad()
    def _made_up_losses(self, other: Other, device: str) -> Tensor:
        return self.subject_losses(_made_up(self.recipe, self._organs, other, device))


class Other(Enum):
    """Who stands beside a made-up subject while its loss is watched."""

    stranger = "stranger"
    twin = "twin"
    """All but a copy: what pushes neighbours apart shows with nobody else."""
    outlier = "outlier"
    nobody = "nobody"


def _made_up(recipe: Recipe, organs: Sequence[str], other: Other, device: str) -> Views:
    """Two subjects of noise, of whom the first is always the same and has all organs."""

    def noise(organ: str, who: int) -> Tensor:
        voxels = stream(0, "made up", organ, who).standard_normal(recipe.organs[organ].shape, dtype=np.float32)
        return torch.from_numpy(voxels)

    seconds = {
        Other.stranger: lambda organ: noise(organ, 1),
        Other.twin: lambda organ: noise(organ, 0) + 1e-3 * noise(organ, 1),
        Other.outlier: lambda organ: 1e3 * noise(organ, 1),
    }
    rows = torch.arange(1 if other is Other.nobody else 2)
    volumes = {o: [noise(o, 0), *([seconds[other](o)] if other in seconds else [])] for o in organs}
    batch = Batch(
        ("first", "second"),
        tuple(organs),
        dict.fromkeys(organs, rows),
        {organ: torch.stack(both) for organ, both in volumes.items()},
    ).to(device)
    organ_draws, patch_draws = ([stream(0, "made up", who, what) for who in (0, 1)] for what in ("organs", "patches"))
    return Views(given=batch, seen=batch, organ_draws=organ_draws, patch_draws=patch_draws)
