"""The seeded plan of faults: which site's answer of which round goes wrong, and how.

The plan is a function of its own seed, the site and the round, so a rehearsal that is resumed, or run again with other hospitals,
meets the same faults at the same places, and what was planned can be told afterwards from the record alone. The faults
themselves are made by `faulty_grid` (on the way) and `site_faults` (in a site's process).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from panfm.config import FaultConfig, FaultKind
from panfm.randomness import stream
from panfm.reporting.record import Event, FaultsPlanned, RoundStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one site's answer of one round."""

    kind: FaultKind
    trained: bool
    """Of a crash: whether it comes when the answer is stored and not yet sent; false: before the site trains."""


def planned_fault(config: FaultConfig, site: str, round_number: int) -> Fault | None:
    """What the plan holds for a site in a round, if anything.

    Args:
        round_number: counted from 1.
    """
    if config.sites and site not in config.sites:
        return None
    draw = stream(config.seed, "fault", site, round_number)
    if draw.random() >= config.rate:
        return None
    kinds = [kind for kind in FaultKind if kind in config.kinds]  # in one order, however they were written
    return Fault(kind=kinds[draw.integers(len(kinds))], trained=bool(draw.integers(2)))


def planned_faults(config: FaultConfig, events: Iterable[Event]) -> FaultsPlanned:
    """All that the plan held for the sites that the record says were asked, in order of rounds and sites."""
    asked = {(event.round, site) for event in events if isinstance(event, RoundStarted) for site in event.sites}
    planned = [(number, site, planned_fault(config, site, number)) for number, site in sorted(asked)]
    faults = [{"round": number, "site": site, "kind": fault.kind.name} for number, site, fault in planned if fault]
    return FaultsPlanned(seed=config.seed, faults=faults)
