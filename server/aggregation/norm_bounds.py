"""How far one site may pull a group: its delta is shortened, not left out, when it is longer than the bound.

The bound is absolute, or comes from past rounds, never from the round itself, so that a wrong update cannot widen the
bound that it is held to. What a round leaves for later ones is the lower median of its voters' norms after shortening: it
is an honest site's norm, or below one, while most voters are honest, and grows by at most `past_factor` in a round.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from panfm.config import RobustConfig
from server.aggregation.votes import Deltas, num_elements, spans


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """What norm bounding did in one group."""

    factors: dict[str, float]
    """site -> what its delta is multiplied with, 1 where it was short enough."""
    past: list[float]
    """The group's past norms with this round's, for the rounds to come."""


def bounded(norms: Mapping[str, float], past: Sequence[float], config: RobustConfig) -> Bounded:
    """How much to shorten each delta of a group.

    Args:
        norms: site -> L2 norm of its delta, as it would enter the mean.
        past: what stands for each past round of the group, oldest first.
    """
    bound = norm_bound(past, config)
    factors = {site: 1.0 if norms[site] <= bound else bound / norms[site] for site in sorted(norms)}
    if not config.past_factor:
        return Bounded(factors=factors, past=[])
    typical = statistics.median_low(min(norm, bound) for norm in norms.values())
    return Bounded(factors=factors, past=[*past, typical][-config.past_rounds :])


def norm_bound(past: Sequence[float], config: RobustConfig) -> float:
    """The longest that a delta of a group may be; infinite where nothing bounds it."""
    absolute = config.max_norm or math.inf
    window = [
        norm for norm in past[-config.past_rounds :] if norm > 0
    ]  # of rounds in which nothing moved nothing follows
    return min(absolute, config.past_factor * statistics.median(window)) if config.past_factor and window else absolute


def delta_norm(deltas: Deltas, names: Sequence[str]) -> float:
    """L2 norm over the named parameters, accumulated in fp64; not finite when an element is not."""
    return math.sqrt(math.fsum(squared_norm(deltas, name) for name in names))


def squared_norm(deltas: Deltas, name: str) -> float:
    """Sum of squares of one delta, read once. The square of an fp32 number fits into fp64, so it is finite exactly when
    every element is."""
    total = 0.0
    for start, stop in spans(num_elements(deltas, name)):
        total += float(deltas.block(name, start, stop).double().square_().sum())
    return total
