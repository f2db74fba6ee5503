"""What keeps a few wrong updates from deciding a group: norm bounds, and means that ignore the extremes."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from panfm.config.require import require


class GroupMean(Enum):
    """How the deltas of a group become one."""

    mean = "mean"
    median = "median"
    trimmed_mean = "trimmed_mean"


@dataclass(slots=True, kw_only=True)
class RobustConfig:
    """Robust averaging of a group."""

    mean: GroupMean = GroupMean.mean
    """mean: weighted by votes. median, trimmed_mean: coordinate by coordinate and unweighted, where at least five sites hold
    the group; elsewhere the weighted mean."""
    trim: float = 0.25
    """trimmed_mean: share of the voters whose values are left out at each end (at least one voter)."""
    max_norm: float = 0.0
    """L2 norm to which a site's delta of one group is shortened before it is averaged; 0: it is not. (Above
    `federation.max_delta_norm` the update does not count at all.)"""
    past_factor: float = 0.0
    """Deltas are also shortened to this many times the median norm of the group's last rounds; 0: they are not. The first
    round of a group has no past and is bounded by `max_norm` only."""
    past_rounds: int = 10
    """Rounds of a group that `past_factor` looks back on."""

    def __post_init__(self) -> None:
        require(0 < self.trim < 0.5, f"federation.robust.trim must be above 0 and below 0.5, got {self.trim}")
        for name in ("max_norm", "past_factor"):
            require(getattr(self, name) >= 0, f"federation.robust.{name} must be 0 or more, got {getattr(self, name)}")
        require(self.past_rounds >= 1, f"federation.robust.past_rounds must be at least 1, got {self.past_rounds}")
