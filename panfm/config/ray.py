"""What a pretend hospital takes of a machine when a rehearsal runs on Flower's simulation runtime (Ray)."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

from panfm.config.require import require


@dataclass(slots=True, kw_only=True)
class RayConfig:
    """Where sites work with engine=flower, and how many side by side."""

    address: str = ""
    """A Ray cluster that runs already (`auto`, or HOST:PORT), whose machines see the run's folder at the same path; empty: Ray
    is started on this machine for `workers` sites at a time, and ended with the rehearsal."""
    cpus: float = 1.0
    """Processors that a site takes while it works."""
    gpus: float = 0.0
    """GPUs that a site takes while it works: 0.25 lets four sites share one. Training uses them with device=cuda."""

    def __post_init__(self) -> None:
        require(self.cpus > 0, f"ray.cpus must be above 0, got {self.cpus}")
        require(self.gpus >= 0, f"ray.gpus must be 0 or more, got {self.gpus}")
