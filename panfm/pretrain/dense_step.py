"""The step's losses in the dense layout, one for each subject, as training with privacy needs them.

The same terms, masks and teacher as in `step`, of which the mean over subjects is the loss there. Each subject's is divided by
its own counts (its hidden patches, its organs, its organs to be predicted) and nothing in it depends on who else is in the batch.
Legend: B subjects, O organs of the model, L tokens of the dense layout, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panfm.config import LossWeights, OrganMaskConfig, PatchMaskConfig
from panfm.data.dataset import Batch
from panfm.models.dense import DenseFeatures, DenseModel
from panfm.models.dense_layout import DenseLayout
from panfm.pretrain.feature_loss import feature_loss, normalised
from panfm.pretrain.organ_mask import draw_organ_masks
from panfm.pretrain.patch_mask import draw_patch_mask
from panfm.pretrain.saliency import Saliency


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseBatch:
    """A batch in which every subject has a place for every organ of the model."""

    volumes: dict[str, Tensor]
    """organ -> [B, X, Y, Z]; zeros where a subject does not have it, which nothing reads."""
    presence: Tensor
    """bool [B, O]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMasks:
    """What the student does not see."""

    organs: Tensor
    """bool [B, O]"""
    patches: Tensor
    """bool [B, L]; equally many in each scan that a subject has, none elsewhere."""


def dense_batch(batch: Batch, shapes: Mapping[str, Sequence[int]]) -> DenseBatch:
    """A ragged batch in the dense layout.

    Args:
        batch: not of native scans; its organs are those of the model, in that order.
        shapes: of each organ's volumes.
    """
    presence = batch.presence
    volumes = {
        organ: torch.zeros(len(presence), *shapes[organ], device=presence.device, dtype=torch.float32)
        for organ in batch.organs
    }
    for organ, rows in batch.rows.items():
        volumes[organ][rows] = batch.volumes[organ].float()
    return DenseBatch(volumes=volumes, presence=presence)


@torch.no_grad()
def dense_teacher_view(teacher: DenseModel, given: DenseBatch, saliency_blocks: int) -> tuple[Tensor, Saliency]:
    """The teacher's normalised features [B, L, E] of all that there is, and what each subject token attends to."""
    features = teacher(given.volumes, given.presence, saliency_blocks=saliency_blocks)
    return normalised(features.tokens), _saliency(features.attention, given.presence, teacher.layout)


def _saliency(attention: Tensor, presence: Tensor, layout: DenseLayout) -> Saliency:
    """As `saliency_of`; a subject without any organ attends to none."""
    mass = torch.where(presence, attention.clamp(min=1e-30), 0.0)
    counts = presence * torch.tensor([float(s.stop - s.start) for s in layout.spans.values()], device=presence.device)
    share = mass / mass.sum(1, keepdim=True).clamp(min=1e-30)
    lift = share * counts.sum(1, keepdim=True) / counts.clamp(min=1)
    return Saliency(share=share, lift=lift, presence=presence)


def draw_dense_masks(
    layout: DenseLayout,
    saliency: Saliency,
    patch_counts: Mapping[str, tuple[int, int, int]],
    organ_config: OrganMaskConfig,
    patch_config: PatchMaskConfig,
    organ_draws: Sequence[np.random.Generator],
    patch_draws: Sequence[np.random.Generator],
) -> DenseMasks:
    """The masks that `step.draw_masks` draws from the same generators, each subject from its own."""
    organs = draw_organ_masks(saliency, organ_config, organ_draws)
    presence = saliency.presence.cpu().numpy()
    hidden = np.zeros((len(presence), layout.length), dtype=np.bool_)
    for row, draws in enumerate(patch_draws):
        for column, (organ, span) in enumerate(layout.spans.items()):
            if presence[row, column]:
                hidden[row, span.start + 1 : span.stop] = draw_patch_mask(patch_counts[organ], patch_config, draws)
    device = saliency.presence.device
    return DenseMasks(organs=organs.to(device), patches=torch.from_numpy(hidden).to(device))


def subject_losses(
    student: DenseModel, seen: DenseBatch, target: Tensor, masks: DenseMasks, weights: LossWeights
) -> Tensor:
    """The loss of each subject, fp32 [B]; 0 for a subject without any organ.

    Args:
        seen: what the student is shown.
        target: the teacher's normalised features, [B, L, E].
    """
    visible = seen.presence & ~masks.organs
    features: DenseFeatures = student(seen.volumes, visible, masks.patches)
    tokens = features.tokens
    losses = tokens.new_zeros(len(tokens), dtype=torch.float32)
    if weights.patch > 0 or weights.seen > 0:
        hidden, shown = _patch_terms(student, tokens, target, masks.patches, visible)
        losses = losses + weights.patch * hidden + weights.seen * shown
    if weights.organ > 0:
        losses = losses + weights.organ * _organ_term(student, tokens, target, masks.organs, seen.presence)
    return losses


def _patch_terms(
    student: DenseModel, tokens: Tensor, target: Tensor, hidden: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Term (a) over hidden and over seen patches of visible organs, [B] each."""
    layout = student.layout
    per_token = feature_loss(student.predict_patches(tokens), target)
    columns = layout.columns(tokens.device)
    columns[layout.organ_tokens] = 0.0  # no patches
    by_organ = [
        ((per_token * chosen) @ columns) / (chosen.float() @ columns).clamp(min=1) for chosen in (hidden, ~hidden)
    ]
    of_hidden, of_seen = (_mean_where(losses, visible) for losses in by_organ)
    return of_hidden, of_seen


def _organ_term(student: DenseModel, tokens: Tensor, target: Tensor, organ_masks: Tensor, presence: Tensor) -> Tensor:
    """Term (b), [B]; 0 for a subject with fewer than two organs."""
    asked = torch.where(organ_masks.any(1, keepdim=True), organ_masks, presence)
    asked = asked & (presence.sum(1, keepdim=True) >= 2)
    predicted = student.predict_organs(tokens[:, 0])
    return _mean_where(feature_loss(predicted, target[:, student.layout.organ_tokens]), asked)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values of each row, 0 where there are none; [B, O] to [B]."""
    return torch.where(chosen, values, 0.0).sum(1) / chosen.sum(1).clamp(min=1)
