"""From the teacher's attention to how much a subject's embedding leans on each organ.

share_o = attention to organ o / attention to all organs, and lift_o = share_o / (tokens of o / tokens of all): without the
division a large organ looks dominant by its size alone. Per subject only: no statistic over a batch, so a subject's masks
depend on no other subject.

Legend: B subjects, O organs in the order of the batch.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST_ATTENTION = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Saliency:
    """What each subject's subject token attends to."""

    share: Tensor
    """fp32 [B, O]; 0 where the organ is absent; a subject's shares sum to 1."""
    lift: Tensor
    """fp32 [B, O]; 0 where the organ is absent; 1 is no preference."""
    presence: Tensor
    """bool [B, O]."""


def saliency_of(
    attention: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    tokens: Mapping[str, int],
    organs: Sequence[str],
    num_subjects: int,
) -> Saliency:
    """Shares and lift of a batch.

    Args:
        attention: organ -> fp32 [n_o], attention to all tokens of the organ.
        rows: organ -> int64 [n_o], subjects that have the organ.
        tokens: organ -> tokens of one scan.
        organs: the columns.
    """
    device = next(iter(rows.values())).device
    mass = torch.zeros(num_subjects, len(organs), device=device)
    count = torch.zeros(num_subjects, len(organs), device=device)
    for column, organ in enumerate(organs):
        if organ in rows:
            # A token attention so small that it is 0 in fp32 must not make a subject's shares 0 / 0.
            mass[rows[organ], column] = attention[organ].float().clamp(min=_LEAST_ATTENTION)
            count[rows[organ], column] = float(tokens[organ])
    share = mass / mass.sum(1, keepdim=True)
    lift = torch.where(count > 0, share * count.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
    return Saliency(share=share, lift=lift, presence=count > 0)


def share_entropy(saliency: Saliency) -> Tensor:
    """Entropy of each subject's shares over its maximum, in 0 to 1; fp32 [b] for the b subjects with two organs or more."""
    present = saliency.presence.sum(1)
    share = saliency.share[present >= 2]
    entropy: Tensor = torch.special.entr(share).sum(1)
    return entropy / present[present >= 2].float().log()
