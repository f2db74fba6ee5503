"""What goes wrong in a rehearsal, and how often: the settings of a seeded fault plan.

Hospitals lose links, processes and disks, and some will send nonsense; a study is rehearsed with that before it is run.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from panfm.config.require import require


class FaultKind(Enum):
    """What can go wrong with one site's answer of one round."""

    drop = "drop"
    """The answer is lost on its way."""
    slow = "slow"
    """The answer is held up on its way for `slow_s`."""
    crash = "crash"
    """The site's process is killed, before it trains or when its answer is stored and not yet sent."""
    exception = "exception"
    """The site's program raises."""
    not_a_number = "not_a_number"
    """One number of the update is not a number."""
    wrong_shape = "wrong_shape"
    """One tensor of the update is flat, and a number short."""
    missing_key = "missing_key"
    """One tensor of the update is missing."""
    extra_key = "extra_key"
    """The update holds a tensor that the site was not sent."""
    stale_round = "stale_round"
    """The update says that it is of the round before."""
    replay = "replay"
    """The site's answer of the round before comes again in place of this one's; where there is none, as stale_round."""
    huge_norm = "huge_norm"
    """The update is a thousand million times as long."""
    sign_flip = "sign_flip"
    """The update points the other way: well-formed, and therefore for the robust means to cope with."""
    out_of_memory = "out_of_memory"
    """The site's process may take no more memory than it has."""


NEEDS_PROCESS = frozenset({FaultKind.crash, FaultKind.out_of_memory})
"""Faults that end or starve a process, and so need sites in processes of their own."""


@dataclass(slots=True, kw_only=True)
class FaultConfig:
    """A seeded plan of faults: which site's answer of which round goes wrong, and how."""

    rate: float = 0.0
    """Chance that a site's answer of a round goes wrong (0 to 1); 0: none does."""
    kinds: list[FaultKind] = field(default_factory=lambda: list(FaultKind))
    """What may go wrong, equally likely. crash and out_of_memory need workers=2 or more and engine=in_process."""
    sites: list[str] = field(default_factory=list)
    """Names of the sites at which something may go wrong; empty: all."""
    seed: int = 0
    """Seed of the plan alone, so that one study can be rehearsed with many plans."""
    lasting: bool = True
    """Whether a program that dies does so at every attempt of that round; false: at the first only."""
    slow_s: float = 5.0
    """How long a slow answer is held up (seconds)."""

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, f"faults.rate must be in 0 to 1, got {self.rate}")
        require(bool(self.kinds) or self.rate == 0, "faults.kinds is empty; name a kind, or set faults.rate=0")
        require(self.slow_s >= 0, f"faults.slow_s must be 0 or more, got {self.slow_s}")
