"""What tells a healthy run from a collapsed one: rank and spread of the features, beside the loss of a constant guess."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panfm.protocol import TrainMetrics

SPREAD_FLOOR = 0.05
"""Below this the features of different patches are nearly one point; a random tiny model starts near 0.6."""
RANK_FLOOR = 1.5
"""Below this they lie nearly on a line; a random tiny model starts above 20."""


def effective_rank(features: Tensor) -> float:
    """Exponential of the entropy of the normalised singular values of centred features.

    Args:
        features: [M, E]; computed in fp32.
    Returns: 1 when all lie on a line (or all are equal), at most min(M, E).
    Source: Roy and Vetterli 2007, "The effective rank".
    """
    values = torch.linalg.svdvals((features - features.mean(0)).float())
    if float(values.sum()) == 0.0:
        return 1.0
    return float(torch.exp(torch.special.entr(values / values.sum()).sum()))


def spread(features: Tensor) -> float:
    """Root mean variance per feature of L2-normalised features, times sqrt(E): 0 when all are equal, 1 on the whole sphere.

    Args:
        features: [M, E].
    """
    points = functional.normalize(features.float(), dim=-1)
    return float(points.var(0, unbiased=False).sum().sqrt())


def collapse_reason(metrics: TrainMetrics) -> str | None:
    """Why a round's training counts as collapsed, in one line, or None; every organ must say so.

    One organ alone may be flat by nature, so an organ that still varies speaks for the site.
    """
    if metrics.spread and max(metrics.spread.values()) < SPREAD_FLOOR:
        return f"its features collapsed: spread {max(metrics.spread.values()):.3f} in every organ, below {SPREAD_FLOOR}"
    if metrics.effective_rank and max(metrics.effective_rank.values()) < RANK_FLOOR:
        return f"its features collapsed: effective rank {max(metrics.effective_rank.values()):.2f}, below {RANK_FLOOR}"
    return None
