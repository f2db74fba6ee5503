"""A step's batch in parts, one after the other: as much memory as the largest part takes, and the gradient of the whole.

A step's loss is a mean over subjects, and what one adds to it depends on no other's organs. So the loss of the whole is the mean
of the parts' losses weighted by their subjects, and so is its gradient, whatever organs the subjects of a part have. What the
teacher says, the masks, and what a constant would guess belong to the whole batch and are had before it is cut.
Legend: B subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panfm.data.dataset import Batch
from panfm.models.pan_organ import Features
from panfm.pretrain.step import Centres, Masks, StepLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some subjects of a step, with all that is known of them before the student looks."""

    share: float
    """Of the step's subjects."""
    given: Batch
    """The teacher's view."""
    seen: Batch
    """The student's view of the same scans."""
    target: Features
    """The teacher's features of `given`, without attention."""
    masks: Masks


def parts_of(whole: Part, number: int) -> list[Part]:
    """A step in parts of nearly equally many subjects, in their order.

    Args:
        number: of parts, 1 or more; a batch of fewer subjects has a part for each.
    """
    subjects = len(whole.given.subjects)
    number = min(number, subjects)
    if number == 1:
        return [whole]
    bounds = [part * subjects // number for part in range(number + 1)]
    return [_between(whole, first, stop) for first, stop in itertools.pairwise(bounds)]


def _between(whole: Part, first: int, stop: int) -> Part:
    """Subjects first .. stop - 1."""
    within = {
        organ: torch.nonzero((rows >= first) & (rows < stop)).flatten() for organ, rows in whole.given.rows.items()
    }
    places = {organ: chosen for organ, chosen in within.items() if chosen.numel()}
    target = whole.target
    return Part(
        share=whole.share * (stop - first) / len(whole.given.subjects),
        given=_batch(whole.given, places, first, stop),
        seen=_batch(whole.seen, places, first, stop),
        target=Features(
            subject=target.subject[first:stop],
            organ={organ: target.organ[organ][chosen] for organ, chosen in places.items()},
            patches={organ: target.patches[organ][chosen] for organ, chosen in places.items()},
            attention={},
        ),
        masks=Masks(
            organs=whole.masks.organs[first:stop],
            patches={organ: whole.masks.patches[organ][chosen] for organ, chosen in places.items()},
        ),
    )


def _batch(batch: Batch, places: dict[str, Tensor], first: int, stop: int) -> Batch:
    return Batch(
        batch.subjects[first:stop],
        batch.organs,
        {organ: batch.rows[organ][chosen] - first for organ, chosen in places.items()},
        {organ: volumes[places[organ]] for organ, volumes in batch.volumes.items() if organ in places},
        {organ: volumes[places[organ]] for organ, volumes in batch.native.items() if organ in places},
    )


def loss_of_parts(losses: Sequence[StepLoss], shares: Sequence[float]) -> StepLoss:
    """The loss of a step from those of its parts.

    Args:
        shares: of the parts; they sum to 1.
    """
    if len(losses) == 1:
        return losses[0]
    return StepLoss(
        total=_mean([loss.total for loss in losses], shares),
        patch=_mean([loss.patch for loss in losses], shares),
        organ=_organ_mean(losses),
        organ_subjects=sum(loss.organ_subjects for loss in losses),
        collapse=sum(share * loss.collapse for share, loss in zip(shares, losses, strict=True)),
        centres=_centres([loss.centres for loss in losses if loss.centres is not None], shares),
    )


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum(0)


def _organ_mean(losses: Sequence[StepLoss]) -> Tensor | None:
    """Over the subjects of whom there is an organ loss."""
    told = [(loss.organ, loss.organ_subjects) for loss in losses if loss.organ is not None]
    subjects = sum(number for _, number in told)
    return _mean([organ for organ, _ in told], [number / subjects for _, number in told]) if told else None


def _centres(centres: Sequence[Centres], shares: Sequence[float]) -> Centres | None:
    """Each is a mean over subjects, as the loss is."""
    if not centres:
        return None
    subject, patch = (_mean([getattr(own, name) for own in centres], shares) for name in ("subject", "patch"))
    return Centres(subject=subject, patch=patch)
