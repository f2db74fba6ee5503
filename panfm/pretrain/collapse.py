"""What tells a healthy run from a collapsed or a diverged one: rank and spread of the features, beside the loss itself.

A loss many times that of saying nothing has diverged, whatever became of the features meanwhile. Features that are flat are a
collapse under every objective. Prototypes can collapse in their head alone, in two ways: all assignments uniform, which holds
the loss at ln K, or all of them the same prototype, which brings it to 0; of cosines, their loss cannot diverge. Pixels cannot be
told from a constant guess by their loss in a healthy run's first rounds, so there the features alone say that it collapsed.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panfm.config import Objective
from panfm.protocol import TrainMetrics

DIVERGED_ABOVE = 10.0
"""Of features and pixels, whose targets have variance 1: whoever predicts 0 everywhere has a loss of at most 1. First rounds of a
tiny model stood at 0.4 and 1.2 with ordinary learning rates, and at 19 and 34 with a rate of 1."""
SPREAD_FLOOR = 0.05
"""Below this the features of different patches are nearly one point; a random tiny model starts near 0.6."""
RANK_FLOOR = 1.5
"""Below this they lie nearly on a line; a random tiny model starts above 20."""
UNIFORM_WITHIN = 1e-3
"""A round's mean loss this close to ln K, as a part of it, has stood there (dinov2#407: 8.3178 of 8.31777)."""
SAME_BELOW = 0.01
"""A loss below this part of ln K has nothing left to predict."""


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


def collapse_reason(metrics: TrainMetrics, objective: Objective = Objective.features) -> str | None:
    """Why a round's training counts as collapsed or diverged, in one line, or None; every organ must say so.

    One organ alone may be flat by nature, so an organ that still varies speaks for the site.
    """
    if objective is Objective.prototypes and (reason := _prototypes_reason(metrics)):
        return reason
    if objective is not Objective.prototypes and metrics.loss_patch > DIVERGED_ABOVE:
        return (
            f"its training diverged: the loss of hidden patches is {metrics.loss_patch:.4g}, and that of predicting 0 at most 1; "
            "lower pretrain.learning_rate"
        )
    if metrics.spread and max(metrics.spread.values()) < SPREAD_FLOOR:
        flat = f"spread {max(metrics.spread.values()):.3f} in every organ, below {SPREAD_FLOOR}"
        return f"its features collapsed: {flat}{_constant_guess(metrics, objective)}"
    if metrics.effective_rank and max(metrics.effective_rank.values()) < RANK_FLOOR:
        line = f"effective rank {max(metrics.effective_rank.values()):.2f}, below {RANK_FLOOR}"
        return f"its features collapsed: {line}{_constant_guess(metrics, objective)}"
    return None


def _prototypes_reason(metrics: TrainMetrics) -> str | None:
    """Either term may collapse while the other still learns."""
    uniform = metrics.collapse_loss
    for what, loss in (("hidden patches", metrics.loss_patch), ("subject tokens", metrics.loss_organ)):
        if loss is not None and abs(loss - uniform) < UNIFORM_WITHIN * uniform:
            return (
                f"its prototypes collapsed: the loss of {what} stands at ln K = {uniform:.4f}, so they are assigned to all "
                "prototypes alike; lower pretrain.prototypes.final_teacher_temperature"
            )
        if loss is not None and loss < SAME_BELOW * uniform:
            return (
                f"its prototypes collapsed: the loss of {what} is {loss:.4f} of at most ln K = {uniform:.4f}, so all are "
                "assigned to the same prototype; lower pretrain.prototypes.centre_momentum or pretrain.learning_rate"
            )
    return None


def _constant_guess(metrics: TrainMetrics, objective: Objective) -> str:
    """What the loss of pixels says beside flat features."""
    if objective is not Objective.pixels:
        return ""
    return (
        f"; its loss is {metrics.loss_patch:.3f}, that of guessing each organ's mean patch {metrics.collapse_loss:.3f}"
    )
