"""The mean of a group's deltas over the sites that hold the group: what federates the pan-organ model.

Sums run in the order of site names, in fp64, rounded once: arrival order changes no bit, and equal votes return
themselves. Deltas are read block by block, each block once, so they may lie on disk, and a median needs no more memory than
a mean.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from panfm.config import GroupMean, RobustConfig
from server.aggregation.robust import FEWEST_SITES, median, num_trimmed, trimmed
from server.aggregation.votes import Deltas, Vote, block_size, names_of, spans

_EXACT_BITS = 29
"""Of a weight; 24 of an fp32 number and these make the 53 of fp64, so each product is exact, and whether a processor fuses
product and sum changes no bit. Moves a weight by at most 2 ** -30 of itself."""


@dataclass(frozen=True, kw_only=True)
class Ballot:
    """The votes on one group, in the order of site names, and how they become one delta."""

    deltas: tuple[Deltas, ...]
    weights: tuple[float, ...]
    """Summing to 1; a robust mean counts every site the same."""
    scales: tuple[float, ...]
    """What each delta is multiplied with before the mean: shortened, or per step."""
    mean: GroupMean
    trim: float = 0.25

    @property
    def block_size(self) -> int:
        """Elements to read at a time: a robust mean holds those of all sites at once, within about the same cache."""
        size = block_size()
        return size if self.mean is GroupMean.mean else max(min(size, size * 8 // len(self.deltas)), 1024)

    @cached_property
    def factors(self) -> tuple[float, ...]:
        """What each delta is multiplied with in a mean."""
        return tuple(_exact(weight * scale) for weight, scale in zip(self.weights, self.scales, strict=True))


@dataclass(frozen=True, slots=True)
class Space:
    """Two blocks in fp64 to add up in."""

    total: Tensor = field(default_factory=lambda: torch.empty(block_size(), dtype=torch.float64))
    term: Tensor = field(default_factory=lambda: torch.empty(block_size(), dtype=torch.float64))


def ballot(
    voting: Sequence[Vote], weights: Mapping[str, float], scales: Mapping[str, float], config: RobustConfig
) -> Ballot:
    """The ballot of a group's voters; weights and scales are by site."""
    order = sorted(voting, key=lambda vote: vote.site)
    return Ballot(
        deltas=tuple(vote.deltas for vote in order),
        weights=tuple(weights[vote.site] for vote in order),
        scales=tuple(scales[vote.site] for vote in order),
        mean=mean_of(len(order), config),
        trim=config.trim,
    )


def mean_of(num_voters: int, config: RobustConfig) -> GroupMean:
    """The mean that so many voters get."""
    return config.mean if num_voters >= FEWEST_SITES else GroupMean.mean


def mean_delta(group: str, votes: Ballot) -> dict[str, Tensor]:
    """The mean of one group's deltas, by name in fp32; memory: the result and a few blocks.

    Raises: ValueError when the sites' names or shapes within the group differ.
    """
    space = Space()
    means = {name: torch.empty(votes.deltas[0].shape(name)) for name in common_names(group, votes)}
    for name, mean in means.items():
        for start, stop in spans(mean.numel(), votes.block_size):
            mean.view(-1)[start:stop].copy_(mean_block(votes, name, start, stop, space))
    return means


def common_names(group: str, votes: Ballot) -> list[str]:
    """The group's parameters, which every voter must have sent in the same shapes.

    Raises: ValueError when they have not; answers are checked before they are averaged.
    """
    first, *others = votes.deltas
    names = names_of(first, group)
    for other in others:
        if names_of(other, group) != names or any(other.shape(name) != first.shape(name) for name in names):
            raise ValueError(
                f"the sites' deltas of {group} must hold the same names and shapes; check before averaging"
            )
    return names


def mean_block(votes: Ballot, name: str, start: int, stop: int, space: Space) -> Tensor:
    """Elements start to stop of the mean, fp64; valid until the next call with the same space."""
    if votes.mean is GroupMean.mean:
        return _weighted_sum(votes, name, start, stop, space)
    values = [_scaled(d.block(name, start, stop), scale) for d, scale in zip(votes.deltas, votes.scales, strict=True)]
    return median(values) if votes.mean is GroupMean.median else trimmed(values, num_trimmed(len(values), votes.trim))


def _weighted_sum(votes: Ballot, name: str, start: int, stop: int, space: Space) -> Tensor:
    # Starting from the first term, not from zeros, keeps the sign of a zero.
    total, term = space.total[: stop - start], space.term[: stop - start]
    total.copy_(votes.deltas[0].block(name, start, stop)).mul_(votes.factors[0])
    for deltas, factor in zip(votes.deltas[1:], votes.factors[1:], strict=True):
        total.add_(term.copy_(deltas.block(name, start, stop)), alpha=factor)
    return total


def _scaled(block: Tensor, scale: float) -> Tensor:
    return block if scale == 1 else block * scale


def _exact(factor: float) -> float:
    mantissa, exponent = math.frexp(factor)
    return math.ldexp(round(mantissa * 2**_EXACT_BITS), exponent - _EXACT_BITS)
