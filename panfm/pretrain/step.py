"""One optimisation step: what the teacher sees, what is hidden from the student, and the feature loss between them.

The teacher sees all present organs, unmasked; `local_round` shows it the crop as it is, and the student an augmented copy.
Its subject-token attention decides which organs the student does not get (Saliency-Guided Masking); in the organs that stay,
patches are hidden. Two terms, each a mean over a subject's own organs and then over the subjects of the batch:
(a) the teacher's features of hidden patches inside visible organs, and, with a weight of its own, of the patches that the
    student saw: it saw them augmented and the teacher did not, so it learns to look through noise and contrast;
(b) the teacher's token of a masked organ, predicted from the student's subject token and the organ's query. Where nothing is
    masked, the organs that the student saw are predicted, so that the subject token always learns to read them.
The other objectives (`prototype_step`, `pixel_step`) take the same views and masks, and the same means.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from panfm.config import LossWeights, OrganGrid, OrganMaskConfig, PatchMaskConfig
from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.patch_embed import Volumes
from panfm.pretrain.feature_loss import feature_loss, normalised
from panfm.pretrain.organ_mask import draw_organ_masks
from panfm.pretrain.patch_mask import draw_patch_mask
from panfm.pretrain.saliency import Saliency, saliency_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """What the student does not see."""

    organs: Tensor
    """bool [B, O] on the CPU."""
    patches: dict[str, Tensor]
    """organ -> bool [n_o, T_o], for every scan of the batch; equally many True in each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Centres:
    """Means of the teacher's logits over one batch, fp32 [K] each."""

    subject: Tensor
    patch: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """The loss of one batch and what it is made of; all before weighting but `total`."""

    total: Tensor
    patch: Tensor
    """fp32 scalar, the objective's loss of hidden patches: features, term (a); prototypes, cross-entropy; pixels, error."""
    organ: Tensor | None
    """fp32 scalar, or None where there is none: term (b) over subjects with two organs or more, of pixels if it has a weight;
    of prototypes the cross-entropy of the subject token, over all subjects."""
    organ_subjects: int
    """Over how many subjects `organ` is a mean."""
    collapse: float
    """What `patch` is when nothing is told apart: of features and pixels its value if each organ's targets of hidden patches in
    this batch were predicted by their mean, of prototypes ln K."""
    centres: Centres | None = None
    """For `prototype_step.move_centres`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What is shown to the student, organ by organ: scans of masked organs are not there."""

    places: dict[str, Tensor]
    """int64 [v_o] among the organ's scans in the batch."""
    scans: dict[str, Volumes]
    rows: dict[str, Tensor]
    """int64 [v_o], rows of the batch."""
    patches: dict[str, Tensor]
    """bool [v_o, T_o], True where a patch is hidden."""


def patch_counts(grid: OrganGrid, patch: int) -> tuple[int, int, int]:
    """Patches of an organ along X, Y, Z."""
    x, y, z = (side // patch for side in grid.shape)
    return x, y, z


def teacher_view(teacher: PanOrganModel, batch: Batch, saliency_blocks: int) -> tuple[Features, Saliency]:
    """The teacher's features of the whole batch and what its subject tokens attend to."""
    with torch.no_grad():
        features = teacher(batch.scans, batch.rows, len(batch.subjects), saliency_blocks=saliency_blocks)
    tokens = {organ: 1 + patches.shape[1] for organ, patches in features.patches.items()}
    return features, saliency_of(features.attention, batch.rows, tokens, batch.organs, len(batch.subjects))


def draw_masks(
    batch: Batch,
    saliency: Saliency,
    patch_counts: Mapping[str, tuple[int, int, int]],
    organ_config: OrganMaskConfig,
    patch_config: PatchMaskConfig,
    organ_draws: Sequence[np.random.Generator],
    patch_draws: Sequence[np.random.Generator],
) -> Masks:
    """Organ masks and patch masks, each subject from its own generators.

    Patches are drawn for masked organs too, so that a subject's patch masks do not depend on its organ masks.
    """
    patches: dict[str, Tensor] = {}
    for organ, rows in batch.rows.items():
        drawn = [draw_patch_mask(patch_counts[organ], patch_config, patch_draws[row]) for row in rows.tolist()]
        patches[organ] = torch.from_numpy(np.stack(drawn)).to(rows.device)
    return Masks(organs=draw_organ_masks(saliency, organ_config, organ_draws), patches=patches)


def step_loss(
    student: PanOrganModel,
    batch: Batch,
    target: Features,
    masks: Masks,
    weights: LossWeights,
    guesses: Mapping[str, Tensor] | None = None,
) -> StepLoss:
    """Both terms for one batch.

    Args:
        batch: what the student is shown; the same subjects, scans and crops as the teacher's.
        target: the teacher's features of them.
        masks: what the student does not see of its batch; in a scan at least one patch is hidden and one is not.
        weights: of the terms; the metrics `patch`, `organ` and `collapse` are before weighting.
        guesses: `mean_targets` of the batch that this one is a part of; None: this one is whole.
    """
    shown = shown_to_student(batch, masks)
    features: Features = student(shown.scans, shown.rows, len(batch.subjects), shown.patches)
    patch = _patch_term(student, features, target, shown, len(batch.subjects), guesses)
    organ, eligible = organ_term(student, batch, features, target, masks.organs)
    total = weights.patch * patch.hidden + weights.seen * patch.seen
    if weights.organ > 0:  # a term without weight gives no gradient, so that weight decay leaves its predictor alone
        total = total + weights.organ * organ
    # Divided by the whole batch and not by those with two organs, so that no subject's gradient depends on another's organs.
    per_eligible = organ.detach() * len(batch.subjects) / eligible if eligible else None
    return StepLoss(
        total=total,
        patch=patch.hidden.detach(),
        organ=per_eligible,
        organ_subjects=eligible,
        collapse=float(patch.constant),
    )


def mean_targets(batch: Batch, target: Features, masks: Masks) -> dict[str, Tensor]:
    """What a constant would best say of each visible organ: the mean of its targets of hidden patches, [E]."""
    return {
        organ: normalised(target.patches[organ][keep])[masks.patches[organ][keep]].mean(0)
        for organ, keep in visible_scans(batch, masks).items()
    }


def visible_scans(batch: Batch, masks: Masks) -> dict[str, Tensor]:
    """Organ -> int64 [v_o]: which of the organ's scans in the batch the student gets; organs of which it gets none are absent."""
    places: dict[str, Tensor] = {}
    for organ, rows in batch.rows.items():
        hidden = masks.organs[rows.cpu(), batch.organs.index(organ)]
        keep = torch.nonzero(~hidden).flatten().to(rows.device)
        if keep.numel():
            places[organ] = keep
    return places


def shown_to_student(batch: Batch, masks: Masks) -> Shown:
    """The scans of a batch that the student gets, and which of their patches are hidden from it."""
    places, scans = visible_scans(batch, masks), batch.scans
    return Shown(
        places=places,
        scans={organ: scans[organ][keep] for organ, keep in places.items()},
        rows={organ: batch.rows[organ][keep] for organ, keep in places.items()},
        patches={organ: masks.patches[organ][keep] for organ, keep in places.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _PatchTerm:
    """Term (a): means over a scan's patches, a subject's organs, then subjects; fp32 scalars."""

    hidden: Tensor
    seen: Tensor
    constant: Tensor
    """`hidden`, if each organ's targets were predicted by their mean."""


def _patch_term(
    student: PanOrganModel,
    features: Features,
    target: Features,
    shown: Shown,
    num_subjects: int,
    guesses: Mapping[str, Tensor] | None,
) -> _PatchTerm:
    scans: dict[str, dict[str, Tensor]] = {"hidden": {}, "seen": {}, "constant": {}}
    for organ, keep in shown.places.items():
        mask = shown.patches[organ]
        wanted = normalised(target.patches[organ][keep])
        loss = feature_loss(student.heads.patch_predictor(features.patches[organ]), wanted)
        guess = wanted[mask].mean(0) if guesses is None else guesses[organ]
        constant = feature_loss(guess.expand_as(wanted), wanted)
        for name, per_patch, chosen in (("hidden", loss, mask), ("seen", loss, ~mask), ("constant", constant, mask)):
            scans[name][organ] = per_patch[chosen].reshape(len(keep), -1).mean(1)
    return _PatchTerm(
        **{name: subject_means(losses, shown.rows, num_subjects).mean() for name, losses in scans.items()}
    )


def organ_term(
    student: PanOrganModel, batch: Batch, features: Features, target: Features, organ_masks: Tensor
) -> tuple[Tensor, int]:
    """Term (b), summed over subjects with two organs or more and divided by B, and how many those are."""
    presence = batch.presence.cpu()
    eligible = presence.sum(1) >= 2
    wanted = torch.where(organ_masks.any(1, keepdim=True), organ_masks, presence) & eligible.unsqueeze(1)
    losses: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for organ, all_rows in batch.rows.items():
        chosen = torch.nonzero(wanted[all_rows.cpu(), batch.organs.index(organ)]).flatten().to(all_rows.device)
        if chosen.numel():
            rows[organ] = all_rows[chosen]
            predicted = student.heads.predict_organ(features.subject[rows[organ]], student.group(organ).query)
            losses[organ] = feature_loss(predicted, normalised(target.organ[organ][chosen]))
    if not losses:
        return features.subject.new_zeros((), dtype=torch.float32), 0
    return subject_means(losses, rows, len(batch.subjects)).mean(), int(eligible.sum())


def subject_means(values: Mapping[str, Tensor], rows: Mapping[str, Tensor], num_subjects: int) -> Tensor:
    """Mean over each subject's own organs of what those organs have, [n_o, ...] to [B, ...]; 0 for a subject with none."""
    first = next(iter(values.values()))
    total = torch.zeros(num_subjects, *first.shape[1:], device=first.device)
    count = torch.zeros(num_subjects, device=first.device)
    for organ, value in values.items():
        total = total.index_add(0, rows[organ], value)
        count = count.index_add(0, rows[organ], torch.ones(len(value), device=first.device))
    return total / count.clamp(min=1).reshape(-1, *[1] * (first.ndim - 1))
