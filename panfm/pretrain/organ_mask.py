"""Saliency-Guided Masking: which organs of a subject the student does not see.

Pre-training on several organs lets easy ones take over; masking what the model leans on makes it learn from the others.
The paper's exact rule is not public, so four rules are offered (DESIGN section 4): `lift` and its controls. At least one
organ always stays visible, and a subject with one organ keeps it. Source of the idea: Wu et al. 2026, arXiv:2605.07055.

Draws come from each subject's own generator and on the CPU, so a mask depends on no other subject and on no device.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from panfm.config import OrganMaskConfig, OrganMaskRule
from panfm.pretrain.saliency import Saliency


def draw_organ_masks(saliency: Saliency, config: OrganMaskConfig, generators: Sequence[np.random.Generator]) -> Tensor:
    """Which organs each subject's student does not see.

    Args:
        saliency: of the teacher, B subjects.
        generators: one per subject.
    Returns: bool [B, O] on the CPU; only organs that are present, never all of them.
    """
    share, lift = saliency.share.cpu().double().numpy(), saliency.lift.cpu().double().numpy()
    presence = saliency.presence.cpu().numpy()
    masked = np.zeros_like(presence)
    for row, draws in enumerate(generators):
        present = np.flatnonzero(presence[row])
        if len(present) >= 2:
            chosen = _choose(share[row, present], lift[row, present], config, draws)
            masked[row, present[chosen]] = True
    return torch.from_numpy(masked)


def lift_probabilities(lift: NDArray[np.float64], temperature: float, explore: float) -> NDArray[np.float64]:
    """p = (1 - e) softmax(log lift / temperature) + e / organs, over the organs given, [O] to [O]."""
    logits = np.log(np.maximum(lift, 1e-12)) / temperature
    # Above 0 even where exp gives 0: a clock that never rings would leave the order of the last organs to the sort.
    weights = np.maximum(np.exp(logits - logits.max()), 1e-300)
    probabilities: NDArray[np.float64] = (1 - explore) * weights / weights.sum() + explore / len(lift)
    return probabilities


def _choose(
    share: NDArray[np.float64], lift: NDArray[np.float64], config: OrganMaskConfig, draws: np.random.Generator
) -> NDArray[np.intp]:
    """Positions, among the organs present, of those to mask."""
    if config.rule is OrganMaskRule.none:
        return np.empty(0, dtype=np.intp)
    if config.rule is OrganMaskRule.threshold:
        return _over_threshold(share, config, draws)
    number = min(int(draws.binomial(len(lift), config.rate)), len(lift) - 1)
    if config.rule is OrganMaskRule.uniform:
        return _successive(np.full(len(lift), 1 / len(lift)), number, draws)
    return _successive(lift_probabilities(lift, config.temperature, config.explore), number, draws)


def _successive(probabilities: NDArray[np.float64], number: int, draws: np.random.Generator) -> NDArray[np.intp]:
    """Successive draws without replacement, each in proportion to what is left.

    The first of exponential clocks with these rates to ring have that law, at the cost of one sort.
    Source: Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir".
    """
    return np.argsort(draws.standard_exponential(len(probabilities)) / probabilities)[:number]


def _over_threshold(
    share: NDArray[np.float64], config: OrganMaskConfig, draws: np.random.Generator
) -> NDArray[np.intp]:
    """Dominant organs, each with the configured chance; of all organs, the one with the least share stays."""
    bound = config.threshold if config.threshold_absolute else config.threshold / len(share)
    chosen = (share > bound) & (draws.random(len(share)) < config.threshold_probability)
    if chosen.all():
        chosen[np.argmin(share)] = False
    return np.flatnonzero(chosen)
