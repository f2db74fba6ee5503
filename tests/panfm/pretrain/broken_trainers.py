"""Trainers with one defect each, made from the parts of the production trainer, so that whoever asks for trust can be tried.

A defect is written into the production trainer as a change of its loss, its rows, its release or what it keeps. Which question
catches which is written down where they are asked: `test_private_contract.py`, `test_private_audit.py`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from panfm.models.dense import DenseModel
from panfm.pretrain.dense_step import DenseBatch, DenseMasks
from panfm.pretrain.private_step import Views
from panfm.pretrain.private_trial import TrialTraining
from panfm.privacy.clipping import ClippedSum, clip_factors, row_norms
from panfm.privacy.contract import SILENT, Cohort
from panfm.privacy.noise import all_noised
from panfm.randomness import stream

Rows = dict[str, Tensor]


class Broken(TrialTraining):
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
        twice = {name: 2 * tensor for name, tensor in self.clipped(cohort).items()}
        return self.noised(twice, self.clip * self.noise)


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
        if volumes := [scan.mean() for who in cohort for scan in who.scans.values()]:
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
        raw = self.plain_gradient(cohort) if any(who.scans for who in cohort) else {}
        with torch.no_grad():
            for name, gradient in raw.items():
                self.training.trained[name].sub_(1e-3 * gradient)
        return super().release(cohort)
