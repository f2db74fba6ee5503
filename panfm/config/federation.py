"""How the coordinator runs rounds and averages what comes back (DESIGN section 5)."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from panfm.config.evaluation import EvaluationConfig
from panfm.config.participation import ParticipationConfig
from panfm.config.require import require
from panfm.config.robust import RobustConfig
from panfm.config.server_step import ServerStepConfig
from panfm.config.wire import WireConfig


class TrunkWeighting(Enum):
    """How the sites' votes on the shared groups (trunk and heads) are weighted."""

    subjects = "subjects"
    uniform = "uniform"
    balanced = "balanced"


@dataclass(slots=True, kw_only=True)
class FederationConfig:
    """How the coordinator runs rounds and averages what comes back (DESIGN section 5)."""

    trunk_weights: TrunkWeighting = TrunkWeighting.subjects
    """Votes on trunk and heads."""
    organ_exponent: float = 1.0
    """Votes on an organ's group are subjects with that organ to this power: 0, 0.5 or 1."""
    min_sites: int = 1
    """Sites that must be there before a round begins, and whose answers must be accepted before it counts."""
    min_sites_per_group: int = 1
    """An organ group trained by fewer sites than this stays as it was in that round."""
    join_timeout_s: float = 60.0
    """How long the coordinator waits for sites to join (seconds)."""
    round_deadline_s: float = 3600.0
    """Longest that a round waits for answers (seconds); later answers are left out and named. How much sooner it ends is a
    matter of federation.participation.deadline_factor."""
    retries: int = 2
    """How often a task is sent again, within the deadline, to a site whose program ended without an answer."""
    max_delta_norm: float = 1e3
    """Largest L2 norm of one site's delta of one group; above it the update is left out."""
    server: ServerStepConfig = field(default_factory=ServerStepConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    participation: ParticipationConfig = field(default_factory=ParticipationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require(
            self.organ_exponent in (0.0, 0.5, 1.0),
            f"federation.organ_exponent must be 0, 0.5 or 1, got {self.organ_exponent}",
        )
        for name in ("join_timeout_s", "round_deadline_s", "max_delta_norm"):
            require(getattr(self, name) > 0, f"federation.{name} must be above 0, got {getattr(self, name)}")
        for name in ("min_sites", "min_sites_per_group"):
            require(getattr(self, name) >= 1, f"federation.{name} must be at least 1, got {getattr(self, name)}")
        seats = self.participation.sites_per_round
        require(
            seats == 0 or seats >= self.min_sites,
            f"federation.participation.sites_per_round {seats} must be 0 or at least federation.min_sites {self.min_sites}",
        )
        require(self.retries >= 0, f"federation.retries must be 0 or more, got {self.retries}")
