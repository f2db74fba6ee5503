"""Which sites take part in a round, how long it waits for them, and what the run must reach to be complete."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field

from panfm.config.require import require


@dataclass(slots=True, kw_only=True)
class ParticipationConfig:
    """Who is asked in a round, how long it waits, and how many sites each organ needs."""

    start_sites: int = 0
    """Sites that must have joined before the first round; 0: as many as federation.min_sites."""
    sites_per_round: int = 0
    """Sites asked in a round, chosen so that every organ reaches its coverage; 0: all that take part."""
    coverage: dict[str, int] = field(default_factory=dict)
    """Organ -> sites whose training of it must have counted in every window of rounds. An organ that is not named here needs
    one, as soon as any site offers it; 0: none. On a command line: +federation.participation.coverage.brain=2."""
    window: int = 0
    """Rounds in which each organ must reach its coverage, wherever they begin; 0: all rounds of the run."""
    deadline_factor: float = 4.0
    """A round waits this many times as long as its slowest site needed in its last rounds, at most
    federation.round_deadline_s, and that long while a site has not been measured; 0: always that long."""
    deadline_least_s: float = 300.0
    """A measured deadline is never shorter than this (seconds)."""
    late_in_a_row: int = 2
    """After so many rounds in a row in which it was late, a site no longer stretches the deadline and is asked in every
    fourth round only, until it answers in time; 0: it is asked and waited for like any other."""
    absence_timeout_s: float = 3600.0
    """How long a round waits, before it begins, for federation.min_sites sites to be there (seconds). Then the run ends as
    incomplete and can be resumed."""

    def __post_init__(self) -> None:
        at = "federation.participation."
        for name in ("start_sites", "sites_per_round", "window", "late_in_a_row", "deadline_factor"):
            require(getattr(self, name) >= 0, f"{at}{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("deadline_least_s", "absence_timeout_s"):
            require(getattr(self, name) > 0, f"{at}{name} must be above 0, got {getattr(self, name)}")
        for organ, sites in self.coverage.items():
            require(sites >= 0, f"{at}coverage.{organ} must be 0 or more, got {sites}")
        require(
            self.deadline_factor == 0 or self.deadline_factor >= 1,
            f"{at}deadline_factor must be 0 or at least 1, got {self.deadline_factor}",
        )
