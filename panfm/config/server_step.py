"""How the coordinator turns a round's deltas into the next model: the mean of a group, and the step along it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from panfm.config.require import require


class ServerOptimiser(Enum):
    """The coordinator's step along the mean delta of a group."""

    fedavg = "fedavg"
    fedavgm = "fedavgm"
    fedadam = "fedadam"
    fedyogi = "fedyogi"


@dataclass(slots=True, kw_only=True)
class ServerStepConfig:
    """The coordinator's step; its state is kept per group."""

    optimiser: ServerOptimiser = ServerOptimiser.fedavg
    """fedavg: the mean itself. fedavgm: with momentum. fedadam, fedyogi: momentum over the size of past means."""
    rate: float = 1.0
    """Step along the mean delta, or along the optimiser's direction; 1 with fedavg is FedAvg. A steady mean moves fedavgm by
    1 / (1 - momentum) times as much; fedadam and fedyogi move each parameter by about the rate itself, so 0.01 or less."""
    momentum: float = 0.9
    """fedavgm, fedadam, fedyogi: how much of the last direction stays (beta_1)."""
    second_momentum: float = 0.99
    """fedadam, fedyogi: how much of the last mean square stays (beta_2)."""
    adaptivity: float = 1e-3
    """fedadam, fedyogi: added to the root of the mean square (tau); below it a parameter's steps shrink with its deltas."""
    normalise_steps: bool = False
    """Average deltas per optimiser step, times the voters' mean number of steps (FedNova), so that a site which did more
    steps does not pull harder for it."""

    def __post_init__(self) -> None:
        for name in ("rate", "adaptivity"):
            require(getattr(self, name) > 0, f"federation.server.{name} must be above 0, got {getattr(self, name)}")
        for name in ("momentum", "second_momentum"):
            value = getattr(self, name)
            require(0 <= value < 1, f"federation.server.{name} must be in 0 to 1 (1 excluded), got {value}")
