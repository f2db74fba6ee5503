"""Differential privacy as a recipe proposes it: which parameters are trained, and how each step clips, samples and noises.

All of it is public, and the same at every site: a rate or a denominator taken from a site's number of subjects would tell it.
The number of steps is `pretrain.steps_per_round`, with and without privacy. What may be spent is no part of a recipe:
it stands in each site's policy.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from panfm.config.require import require


class PrivacyMode(Enum):
    """What is trained, and whether with differential privacy."""

    none = "none"
    """Everything, without noise."""
    dp_adapters = "dp_adapters"
    """Bottleneck adapters and predictors, with noise; all else stays as it began."""
    dp_full = "dp_full"
    """Everything, with noise."""


@dataclass(slots=True, kw_only=True)
class PrivacyConfig:
    """Subject-level DP-SGD. The noise and the samples come from each site's operating system, never from `seed`."""

    mode: PrivacyMode = PrivacyMode.none
    """none, dp_adapters or dp_full. What follows counts with the last two only."""
    clip_norm: float = 1.0
    """Largest norm that one subject's gradient can have in a step."""
    noise_multiplier: float = 1.0
    """Standard deviation of the noise on a step's sum of gradients, in units of clip_norm; `panfm privacy plan` finds it."""
    sampling_rate: float = 0.05
    """Chance of each subject to be in a step's sample, at every site."""
    denominator: float = 16.0
    """By which each step's noised sum is divided: a nominal sample, not what a site's number of subjects would give."""
    views: int = 1
    """Crops and masks under which each sampled subject is seen in a step. Its gradient is their mean, taken before the clip: more
    of them cost time, and no budget."""

    @property
    def is_on(self) -> bool:
        """Whether anything is noised at all."""
        return self.mode is not PrivacyMode.none

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "denominator"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"privacy.{name} must be above 0 and finite, got {value}")
        require(self.views >= 1, f"privacy.views must be at least 1, got {self.views}")
        require(
            0 < self.sampling_rate <= 1,
            f"privacy.sampling_rate must be above 0 and at most 1, got {self.sampling_rate}",
        )
