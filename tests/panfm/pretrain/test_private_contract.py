"""Both modes hold to the contract on ragged subjects; trainers with one defect each, made from the same parts, do not.

A defect is written into the production trainer as a change of its loss, its rows, its release or what it keeps. Which question
catches it is written down beside it, so that a question that no longer bites shows.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from panfm.config import OrganMaskConfig, OrganMaskRule, PrivacyConfig, PrivacyMode, Recipe
from panfm.data.dataset import Batch
from panfm.errors import ConfigError
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.dense import DenseModel
from panfm.pretrain import dense_step
from panfm.pretrain.dense_step import DenseBatch, DenseMasks
from panfm.pretrain.private_step import PrivateTraining, Views, losses_of
from panfm.privacy.clipping import ClippedSum, clip_factors, row_norms
from panfm.privacy.contract import QUESTIONS, SILENT, Breach, Cohort, breaches
from panfm.privacy.noise import all_noised
from panfm.randomness import stream

MakeRecipe = Callable[..., Recipe]
Rows = dict[str, Tensor]

DENOMINATOR = 3.0


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


_STARTS: dict[tuple[str, int], dict[str, Tensor]] = {}


def _start(recipe: Recipe, seed: int) -> dict[str, Tensor]:
    """Parameters none of which is 0 or 1, so that no gradient vanishes."""
    key = (repr(recipe.model), seed)
    if key not in _STARTS:
        _STARTS[key] = _drawn(recipe, seed)
    return _STARTS[key]


def _drawn(recipe: Recipe, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3 + seed)
    drawn = initial_parameters(recipe.model, recipe.organs, seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in drawn.items()}


class Correct:
    """The production trainer under question; defects are written over its parts."""

    most = 2
    """Subjects of a physical batch."""

    def __init__(self, recipe: Recipe, mode: PrivacyMode, clip: float, noise: float) -> None:
        self.recipe, self.clip, self.noise = recipe, clip, noise
        self.privacy = PrivacyConfig(mode=mode, clip_norm=clip, noise_multiplier=noise, denominator=DENOMINATOR)
        self.organs, self.start = tuple(recipe.organs), _start(recipe, 0)
        teacher = _start(recipe, 1)
        self.training = PrivateTraining(self.start, teacher, self.organs, recipe, self.privacy, losses=self.losses)

    denominator = DENOMINATOR

    @property
    def trained(self) -> Sequence[str]:
        return list(self.training.trained)

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        return dense_step.subject_losses(student, seen, target, masks, self.recipe.pretrain.loss)

    def views(self, cohort: Cohort) -> list[Views]:
        return [views_of(cohort, self.organs)]

    def subject_gradients(self, cohort: Cohort) -> Mapping[str, Tensor]:
        return self.training.rows(self.views(cohort))

    def plain_gradient(self, cohort: Cohort) -> Mapping[str, Tensor]:
        model = build_model(self.recipe.model, self.recipe.organs)
        load_parameters(model, self.start)
        own, teacher = dict(model.named_parameters()), DenseModel(self.training.teacher.model)
        loss = losses_of(DenseModel(model), teacher, self.views(cohort)[0], self.recipe, self.losses)().sum()
        gradients = torch.autograd.grad(loss, [own[name] for name in self.trained], materialize_grads=True)
        return dict(zip(self.trained, gradients, strict=True))

    def parts(self, cohort: Cohort) -> Iterator[tuple[Sequence[int], Sequence[Views]]]:
        for start in range(0, len(cohort), self.most):
            some = cohort[start : start + self.most]
            yield range(start, start + len(some)), self.views(some)

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        return self.training.release(self.parts(cohort))

    def finish(self, released: Mapping[str, Tensor]) -> None:
        self.training.finish(released, 0)

    def state(self) -> Mapping[str, Tensor]:
        models = {"student": self.training.student, "teacher": self.training.teacher.model}
        kept = {f"{who}.{name}": value for who, model in models.items() for name, value in model.state_dict().items()}
        for number, state in enumerate(self.training.optimiser.state.values()):
            kept |= {f"optimiser.{number}.{name}": value for name, value in state.items()}
        return kept

    def metrics(self) -> Mapping[str, float]:
        return {}


@pytest.fixture
def without_question_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the contract's own questions are seen to work, and to save time."""
    monkeypatch.setattr(PrivateTraining, "_refuse_coupling", lambda self, device: None)


class Broken(Correct):
    """What is written over the production trainer's parts."""

    def summed(self, cohort: Cohort) -> tuple[Rows, list[dict[str, Tensor]]]:
        """Zeros of every parameter, and the rows of each physical batch."""
        zeros = {name: torch.zeros_like(parameter) for name, parameter in self.training.trained.items()}
        return zeros, [dict(self.training.rows(views)) for _, views in self.parts(cohort)]

    def noised(self, sums: Rows, std: float) -> Rows:
        return {name: tensor / self.denominator for name, tensor in all_noised(sums, std).items()}

    def clipped(self, cohort: Cohort) -> Rows:
        """The right sum, for those that are wrong about noise."""
        sums, parts = self.summed(cohort)
        for rows in parts:
            factors = clip_factors(row_norms(rows), self.clip).float()
            for name, tensor in rows.items():
                sums[name] += torch.einsum("b,b...->...", factors, tensor)
        return sums


# Gradients and clipping.


class NoClipping(Broken):
    def release(self, cohort: Cohort) -> Rows:
        sums, parts = self.summed(cohort)
        for rows in parts:
            sums = {name: sums[name] + tensor.sum(0) for name, tensor in rows.items()}
        return self.noised(sums, self.clip * self.noise)


class BatchClipping(Broken):
    def release(self, cohort: Cohort) -> Rows:
        sums, parts = self.summed(cohort)
        for rows in parts:
            whole = {name: tensor.sum(0, keepdim=True) for name, tensor in rows.items()}
            factor = float(clip_factors(row_norms(whole), self.clip * len(cohort)))
            sums = {name: sums[name] + factor * tensor[0] for name, tensor in whole.items()}
        return self.noised(sums, self.clip * self.noise)


class LayerClipping(Broken):
    """Each parameter is clipped by itself, to the whole clip norm."""

    def release(self, cohort: Cohort) -> Rows:
        sums, parts = self.summed(cohort)
        for rows in parts:
            for name, tensor in rows.items():
                one = ClippedSum({name: sums[name]}, self.clip)
                one.add({name: tensor}, range(len(tensor)))
                sums[name] += one.release(SILENT, 1.0)[name]
        return self.noised(sums, self.clip * self.noise)


class AdaptiveClipping(Broken):
    """The clip norm is the median of the batch."""

    def release(self, cohort: Cohort) -> Rows:
        sums, parts = self.summed(cohort)
        norms = [norm for rows in parts for norm in row_norms(rows).tolist()]
        clip = min(self.clip, float(np.median(norms))) if norms else self.clip
        for rows in parts:
            factors = clip_factors(row_norms(rows), clip).float()
            for name, tensor in rows.items():
                sums[name] += torch.einsum("b,b...->...", factors, tensor)
        return self.noised(sums, self.clip * self.noise)


class CropsOnBatch(Broken):
    """Two crops of a subject are two rows."""

    def subject_gradients(self, cohort: Cohort) -> Rows:
        return {name: torch.cat([rows, rows]) for name, rows in super().subject_gradients(cohort).items()}

    def release(self, cohort: Cohort) -> Rows:
        return {name: 2 * tensor for name, tensor in super().release(cohort).items()}


class RowsOfOthers(Broken):
    """Rows are in another order than the subjects, as after a gather: shape and sum are right."""

    def subject_gradients(self, cohort: Cohort) -> Rows:
        return {
            name: rows.roll(1, 0) if "patch_predictor" in name else rows
            for name, rows in super().subject_gradients(cohort).items()
        }


class ForgottenTerm(Broken):
    """A layer's rule forgets the rows of its biases."""

    def subject_gradients(self, cohort: Cohort) -> Rows:
        found = super().subject_gradients(cohort)
        return {name: 0 * rows if name.endswith("bias") else rows for name, rows in found.items()}


class RealDenominator(Broken):
    """Divided by the size of the sample."""

    def release(self, cohort: Cohort) -> Rows:
        return {n: t * self.denominator / max(1, len(cohort)) for n, t in super().release(cohort).items()}


# Objectives that couple subjects.


class BatchCentre(Broken):
    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        return super().losses(student, seen, target - target.mean(0), masks)


class EmaCentre(Broken):
    """The centre lags by one step, so that a batch is not coupled: it lives on."""

    centre: Tensor | float = 0.0

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        return super().losses(student, seen, target - self.centre, masks)

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        released = super().release(cohort)
        if cohort:
            volumes = [scan.mean() for who in cohort for scan in who.scans.values()]
            self.centre = 0.9 * self.centre + 0.1 * float(torch.stack(volumes).mean())
        return released


class BatchSgm(Broken):
    """An organ is hidden where its share passes the batch's mean."""

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        share = target.abs().mean((1, 2))
        over = (share > share.mean())[:, None] & seen.presence & (seen.presence.sum(1, keepdim=True) >= 2)
        first = over & (seen.presence.cumsum(1) == 1)
        return super().losses(student, seen, target, replace(masks, organs=first))


class SgmMemory(Broken):
    """What was hidden in the step before decides, too."""

    memory = 0.0

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        return super().losses(student, seen, target, masks) * (1 + self.memory)

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        released = super().release(cohort)
        self.memory = sum(float(scan.std()) for who in cohort for scan in who.scans.values())
        return released


class GlobalMaskCount(Broken):
    """Divided by the hidden patches of the batch and not by a subject's own."""

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        losses = super().losses(student, seen, target, masks)
        own = (masks.patches.sum(1) > 0).float() * masks.patches.sum(1)
        return losses * own * len(own) / own.sum().clamp(min=1)


class MeanOverValid(Broken):
    """Divided by the subjects that have an organ at all."""

    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        valid = seen.presence.any(1).sum().clamp(min=1)
        return super().losses(student, seen, target, masks) * 4 / valid


class Koleo(Broken):
    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        losses = super().losses(student, seen, target, masks)
        if len(losses) < 2:
            return losses
        tokens = nn.functional.normalize(student(seen.volumes, seen.presence, masks.patches).tokens.mean(1), dim=-1)
        near = torch.cdist(tokens, tokens) + 10 * torch.eye(len(tokens))
        return losses - 0.1 * torch.log(near.min(1).values + 1e-8)


class BatchNormHead(Broken):
    def losses(self, student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks) -> Tensor:
        if len(target) > 1:
            target = (target - target.mean((0, 1))) / (target.var((0, 1)) + 1e-5).sqrt()
        return super().losses(student, seen, target, masks)


class SharedMaskDraws(Broken):
    """One generator draws the masks of all: a subject's depend on how many organs those before it have."""

    def views(self, cohort: Cohort) -> list[Views]:
        views = super().views(cohort)[0]
        one = stream(7, "all")
        return [replace(views, organ_draws=[one] * len(cohort), patch_draws=[one] * len(cohort))]


# Noise, and what is told.


class NoiseWithoutClip(Broken):
    def release(self, cohort: Cohort) -> Rows:
        return self.noised(self.clipped(cohort), self.noise)


class LessNoise(Broken):
    def release(self, cohort: Cohort) -> Rows:
        return self.noised(self.clipped(cohort), 0.7 * self.noise * self.clip)


class NoNoiseOnAbsent(Broken):
    """Parameters that nobody touched get none."""

    def release(self, cohort: Cohort) -> Rows:
        sums = self.clipped(cohort)
        noised = self.noised(sums, self.noise * self.clip)
        return {name: tensor if bool(sums[name].any()) else sums[name] for name, tensor in noised.items()}


class NoNoiseForNobody(Broken):
    """An empty sample is left out."""

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        if not cohort:
            return {name: torch.zeros_like(parameter) for name, parameter in self.training.trained.items()}
        return super().release(cohort)


class NoisePerPart(Broken):
    """Each physical batch is noised."""

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        parts = list(self.parts(cohort))
        released = [self.training.release([part]) for part in parts] or [self.training.release([])]
        return {name: torch.stack([part[name] for part in released]).sum(0) for name in released[0]}


class SeededNoise(Broken):
    def release(self, cohort: Cohort) -> Rows:
        generator, sums = torch.Generator().manual_seed(self.recipe.seed), self.clipped(cohort)
        std = self.noise * self.clip
        return {n: (t + std * torch.randn(t.shape, generator=generator)) / self.denominator for n, t in sums.items()}


class GlobalNoise(Broken):
    """From torch's own generator, which anybody may have seeded."""

    def release(self, cohort: Cohort) -> Rows:
        sums, std = self.clipped(cohort), self.noise * self.clip
        return {name: (t + std * torch.randn(t.shape)) / self.denominator for name, t in sums.items()}


class RawMetric(Broken):
    told = 0.0

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        for _, views in self.parts(cohort):
            self.told += float(self.training.subject_losses(views[0]).sum().detach())
        return super().release(cohort)

    def metrics(self) -> Mapping[str, float]:
        return {"loss": self.told}


class RawStep(Broken):
    """The optimiser also takes a raw gradient."""

    def release(self, cohort: Cohort) -> Mapping[str, Tensor]:
        raw = self.plain_gradient(cohort)
        with torch.no_grad():
            for name, parameter in self.training.trained.items():
                parameter.sub_(1e-3 * raw[name])
        return super().release(cohort)


DEFECTS: dict[type[Broken], set[str]] = {
    NoClipping: {"norm", "path", "sensitivity"},
    BatchClipping: {"path", "neighbour"},
    LayerClipping: {"norm", "path"},
    AdaptiveClipping: {"neighbour"},
    CropsOnBatch: {"unit", "norm"},
    RowsOfOthers: {"row"},
    ForgottenTerm: {"gradient"},
    RealDenominator: {"path", "noise"},
    BatchCentre: {"neighbour"},
    EmaCentre: {"state"},
    BatchSgm: {"neighbour"},
    SgmMemory: {"state"},
    GlobalMaskCount: {"neighbour"},
    MeanOverValid: {"neighbour"},
    Koleo: {"neighbour"},
    BatchNormHead: {"neighbour"},
    SharedMaskDraws: {"neighbour"},
    NoiseWithoutClip: {"noise"},
    LessNoise: {"noise"},
    NoNoiseOnAbsent: {"noise"},
    NoNoiseForNobody: {"noise"},
    NoisePerPart: {"noise"},
    SeededNoise: {"freshness"},
    GlobalNoise: {"freshness"},
    RawMetric: {"metrics"},
    RawStep: {"state"},
}
"""Each defect, and questions that must find it; others may find it, too."""


def small(make_recipe: MakeRecipe) -> Recipe:
    """As small as a pan-organ model gets: the questions are the same."""
    recipe = make_recipe(organ_mask=OrganMaskConfig(rate=0.5))
    recipe.organs = {organ: replace(grid) for organ, grid in recipe.organs.items()}
    recipe.model = replace(recipe.model, width=12, depth=1, heads=2, predictor_width=8, adapter_width=2)
    return recipe


def asked(
    kind: type[Correct], recipe: Recipe, mode: PrivacyMode, questions: Collection[str] = QUESTIONS
) -> tuple[Breach, ...]:
    shapes = {organ: tuple(grid.shape) for organ, grid in recipe.organs.items()}
    return breaches(lambda clip, noise: kind(recipe, mode, clip, noise), shapes, questions)


MODES = (PrivacyMode.dp_full, PrivacyMode.dp_adapters)


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "rule",
    [
        OrganMaskRule.lift,
        *(pytest.param(r, marks=pytest.mark.slow) for r in OrganMaskRule if r is not OrganMaskRule.lift),
    ],
)
def test_production_holds_to_the_contract(make_recipe: MakeRecipe, mode: PrivacyMode, rule: OrganMaskRule) -> None:
    recipe = small(make_recipe)
    recipe.pretrain.organ_mask = OrganMaskConfig(rule=rule, rate=0.5)
    assert asked(Correct, recipe, mode) == ()


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize("defect", list(DEFECTS), ids=lambda kind: str(kind.__name__))
def test_each_defect_is_caught(make_recipe: MakeRecipe, defect: type[Broken]) -> None:
    found = asked(defect, small(make_recipe), PrivacyMode.dp_adapters, DEFECTS[defect])
    assert {breach.question for breach in found} == DEFECTS[defect]


@pytest.mark.parametrize("defect", [BatchCentre, BatchNormHead, Koleo, MeanOverValid, GlobalMaskCount])
def test_coupled_objective_is_refused_at_the_start(make_recipe: MakeRecipe, defect: type[Broken]) -> None:
    with pytest.raises(ConfigError, match="couples subjects"):
        defect(small(make_recipe), PrivacyMode.dp_adapters, 1.0, 1.0)
