"""A trainer of one parameter that is nothing but the mechanism that is claimed: clipped rows, Gaussian noise, from a seed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from panfm.privacy.contract import Cohort, MadeUp, Named
from panfm.privacy.one_run_audit import CANARY_NORM, Canaries

SIZE = 1200


class GaussianSum:
    """Does what it is told, or a given number of times that."""

    denominator = 5.0
    trained: Sequence[str] = ("weight",)

    def __init__(
        self,
        draws: np.random.Generator,
        clip_norm: float,
        noise_multiplier: float,
        canaries: Canaries | None = None,
        *,
        times_noise: float = 1.0,
        times_clip: float = 1.0,
    ) -> None:
        self._draws, self._canaries, self._clip = draws, canaries or {}, clip_norm * times_clip
        self._raw, self._std = CANARY_NORM * clip_norm, clip_norm * noise_multiplier * times_noise

    def _row(self, who: MadeUp) -> Tensor:
        """A canary's own; of others the sum of their voxels, along the first coordinate."""
        row = torch.zeros(SIZE, dtype=torch.float64)
        if who.name in self._canaries:
            row[self._canaries[who.name].place] = self._raw
        row[0] += sum((scan.double().sum().abs() for scan in who.scans.values()), start=torch.zeros(()).double())
        return row

    def subject_gradients(self, cohort: Cohort) -> Named:
        return {"weight": torch.stack([self._row(who) for who in cohort])}

    def plain_gradient(self, cohort: Cohort) -> Named:
        return {"weight": self.subject_gradients(cohort)["weight"].sum(0)}

    def release(self, cohort: Cohort) -> Named:
        total = torch.from_numpy(self._draws.standard_normal(SIZE)) * self._std
        for who in cohort:
            row = self._row(who)
            norm = float(row.norm())
            total += row * (min(1.0, self._clip / norm) if norm and math.isfinite(self._clip) else 1.0)
        return {"weight": total / self.denominator}

    def finish(self, released: Named) -> None:
        """Nothing is learnt."""

    def state(self) -> Named:
        return {}

    def metrics(self) -> Mapping[str, float]:
        return {}
