"""The trainer of production as those who test its privacy ask it: subjects that never lived in, and what its steps make of them.

Nothing is computed here that production does not compute, but for two things. Losses, views, rows, clipping, noise and
optimiser are those of `private_step`; parameters are drawn so that no gradient vanishes; and a *canary*, a null subject of
whom the trainer is made to believe a large gradient along one coordinate, goes through all that follows a gradient.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from panfm.config import PrivacyConfig, PrivacyMode, Recipe
from panfm.data.dataset import Batch
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.dense import DenseModel
from panfm.pretrain.dense_step import DenseBatch, DenseMasks
from panfm.pretrain.private_step import Part, PrivateTraining, Views, losses_of, recipe_losses
from panfm.privacy.contract import Cohort
from panfm.privacy.one_run_audit import CANARY_NORM, Canaries
from panfm.randomness import stream

DENOMINATOR = 3.0
_SCATTER = 0.1
"""Standard deviation by which parameters lie off their beginning, where many are 0 or 1."""


class TrialTraining:
    """Answers `panfm.privacy.contract`, and the two audits; those who break it on purpose write over its parts."""

    denominator = DENOMINATOR
    most = 3
    """Subjects of a physical batch: few, so that a sample has several."""
    remembers = False
    """Whether the gradients of a sample, in which nothing is random, are computed once, however often it is released."""

    def __init__(
        self,
        recipe: Recipe,
        mode: PrivacyMode,
        clip_norm: float,
        noise_multiplier: float,
        canaries: Canaries | None = None,
    ) -> None:
        """Begin, always from the same parameters.

        Args:
            canaries: names of subjects, and where the gradient lies that each is believed to have.
        """
        self.recipe, self.clip, self.noise = recipe, clip_norm, noise_multiplier
        self.organs, self.start = tuple(recipe.organs), drawn_parameters(recipe, 0)
        self.training = _WithCanaries(
            self.start,
            drawn_parameters(recipe, 1),
            self.organs,
            recipe,
            PrivacyConfig(
                mode=mode, clip_norm=clip_norm, noise_multiplier=noise_multiplier, denominator=self.denominator
            ),
            losses=self.losses,
        )
        self._known: dict[tuple[int, ...], tuple[Cohort, list[Part]]] = {}
        self.training.canaries = canaries or {}
        self.training.canary_norm = CANARY_NORM * clip_norm

    @property
    def trained(self) -> Sequence[str]:
        """Names of all parameters that the declared organs train."""
        return list(self.training.trained)

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        """The objective of the recipe, [B]."""
        return recipe_losses(self.recipe)(student, seen, target, masks)

    def views(self, cohort: Cohort) -> list[Views]:
        """What teacher and student see of these subjects."""
        return [views_of(cohort, self.organs)]

    def parts(self, cohort: Cohort) -> list[Part]:
        """A sample in physical batches."""
        if not self.remembers:
            return self._parts(cohort)
        key = tuple(map(id, cohort))
        if key not in self._known:
            parts = self._parts(cohort)
            known = {id(views): self.training.rows(views) for _, views in parts}
            self._known[key], self.training.known = (cohort, parts), {**self.training.known, **known}
        return self._known[key][1]

    def _parts(self, cohort: Cohort) -> list[Part]:
        starts = range(0, len(cohort), self.most)
        parts = [(start, cohort[start : start + self.most]) for start in starts]
        return [(range(start, start + len(some)), self.views(some)) for start, some in parts]

    def subject_gradients(self, cohort: Cohort) -> Mapping[str, Tensor]:
        """Each subject's gradient before it is clipped, [B, ...]."""
        return self.training.rows(self.views(cohort))

    def plain_gradient(self, cohort: Cohort) -> Mapping[str, Tensor]:
        """The gradient of the sum of the losses, each the mean over views, in a model without hooks."""
        model = build_model(self.recipe.model, self.recipe.organs)
        load_parameters(model, self.start)
        own, student, teacher = (
            dict(model.named_parameters()),
            DenseModel(model),
            DenseModel(self.training.teacher.model),
        )
        losses = [losses_of(student, teacher, views, self.recipe, self.losses)() for views in self.views(cohort)]
        whole = torch.stack(losses).mean(0).sum()
        gradients = torch.autograd.grad(whole, [own[name] for name in self.trained], materialize_grads=True)
        return dict(zip(self.trained, gradients, strict=True))

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        """What a step that sampled these subjects may use of them."""
        return self.training.release(self.parts(cohort))

    def finish(self, released: Mapping[str, Tensor]) -> None:
        """Go one step along what was released."""
        self.training.finish(released, 0)

    def state(self) -> Mapping[str, Tensor]:
        """Everything that lasts beyond a step."""
        models = {"student": self.training.student, "teacher": self.training.teacher.model}
        kept = {f"{who}.{name}": value for who, model in models.items() for name, value in model.state_dict().items()}
        for number, state in enumerate(self.training.optimiser.state.values()):
            kept |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        return kept

    def metrics(self) -> Mapping[str, float]:
        """Nothing is told of a step with privacy."""
        return {}


class _WithCanaries(PrivateTraining):
    """Production, written over in one place: a gradient along one coordinate can be believed, but not be had from a scan."""

    canaries: Canaries = MappingProxyType({})
    canary_norm = 0.0
    known: Mapping[int, dict[str, Tensor]] = MappingProxyType({})

    def rows(self, views: Sequence[Views]) -> dict[str, Tensor]:
        """Each subject's own gradient, and those that canaries are believed to have."""
        if id(views) in self.known:
            return dict(self.known[id(views)])
        rows = super().rows(views)
        held = [(row, self.canaries[name]) for row, name in enumerate(views[0].given.subjects) if name in self.canaries]
        for name in {canary.parameter for _, canary in held}:
            rows[name] = rows[name].clone(memory_format=torch.contiguous_format)
        for row, canary in held:
            rows[canary.parameter][row].view(-1)[canary.place] += self.canary_norm
        return rows


def views_of(cohort: Cohort, organs: Sequence[str]) -> Views:
    """A batch of these subjects, the student's intensities changed, and generators by their names."""
    rows = {o: torch.tensor([row for row, who in enumerate(cohort) if o in who.scans]) for o in organs}
    rows = {organ: present for organ, present in rows.items() if present.numel()}
    names = tuple(who.name for who in cohort)
    volumes = {organ: torch.stack([cohort[row].scans[organ] for row in held.tolist()]) for organ, held in rows.items()}
    given = Batch(names, tuple(organs), rows, volumes)
    organ_draws, patch_draws = ([stream(7, name, what) for name in names] for what in ("organs", "patches"))
    seen = replace(given, volumes={organ: 0.9 * volume + 0.1 for organ, volume in volumes.items()})
    return Views(given=given, seen=seen, organ_draws=organ_draws, patch_draws=patch_draws)


_DRAWN: dict[tuple[str, str, int], dict[str, Tensor]] = {}
"""What `drawn_parameters` gave, to be read only: a suite begins some fifteen trainers for each of its questions."""


def drawn_parameters(recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Parameters none of which is 0 or 1."""
    key = (repr(recipe.model), repr(recipe.organs), seed)
    if key not in _DRAWN:
        generator = torch.Generator().manual_seed(3 + seed)
        drawn = initial_parameters(recipe.model, recipe.organs, seed)
        _DRAWN[key] = {
            name: value + _SCATTER * torch.randn(value.shape, generator=generator) for name, value in drawn.items()
        }
    return _DRAWN[key]
