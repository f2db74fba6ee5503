"""Whom a round asks: by organ, so that each reaches its coverage in time, and otherwise in turn.

The choice is a function of (seed, round, the sites that are there, who was asked and what counted before); no clock and no
measured time is in it. Ties are broken by a draw keyed by seed, round and site, so that no site is favoured for its name.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from panfm.config import FederationConfig
from panfm.randomness import stream
from server.attendance import Rounds, last_asked, misses_in_a_row, times_asked
from server.coverage import covered_by
from server.deadlines import is_wedged

REST = 4
"""A site that is not waited for any more is asked in every fourth round: often enough to find it mended the same day."""

Offers = Mapping[str, Collection[str]]
"""Site -> organs that it offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a choice in one round looks at."""

    seed: int
    number: int
    """The round that is chosen for."""
    rounds: Rounds
    """`Attendance.finished` before it."""
    needed: Mapping[str, int]
    """Organ -> sites that it needs in every window (`coverage.needed`)."""


def choose_sites(offers: Offers, standing: Standing, federation: FederationConfig) -> tuple[str, ...]:
    """The sites that a round asks, sorted by name.

    Organs that lack coverage choose first, the longest uncovered before the others, each among the sites that hold it; what
    seats are left go to the sites that were asked longest ago.

    Args:
        offers: the sites that are there.
        federation: seats, window and minimum.
    """
    awake = _awake(offers, standing, federation)
    seats = federation.participation.sites_per_round or len(awake)
    if seats >= len(awake):
        return tuple(sorted(awake))
    chosen = _for_coverage(awake, standing, federation.participation.window, seats)
    in_turn = sorted(awake.keys() - chosen, key=lambda site: _turn(site, standing))
    return tuple(sorted([*chosen, *in_turn[: seats - len(chosen)]]))


def _awake(offers: Offers, standing: Standing, federation: FederationConfig) -> Offers:
    """Sites but those that rest because they were late again and again; all, where too few would be left."""
    awake = {
        site: organs
        for site, organs in offers.items()
        if not is_wedged(site, standing.rounds, federation.participation)
        or standing.number - last_asked(site, standing.rounds) >= REST
    }
    return awake if len(awake) >= federation.min_sites else offers


def _for_coverage(awake: Offers, standing: Standing, window: int, seats: int) -> list[str]:
    """Sites for the organs that lack coverage, as far as seats and sites go."""
    recent = _recent(standing, window)
    covering = {organ: set(covered_by(organ, recent)) for organ in standing.needed}
    chosen: list[str] = []
    for _ in range(seats):
        lacking = {organ for organ, sites in covering.items() if len(sites) < standing.needed[organ]}
        wanted = sorted(lacking, key=lambda organ: _age(organ, standing))
        holders = ([s for s in awake if o in awake[s] and s not in covering[o] and s not in chosen] for o in wanted)
        candidates = next((sites for sites in holders if sites), [])
        if not candidates:
            break
        best = min(candidates, key=lambda site: _fitness(site, awake[site], lacking, covering, standing))
        chosen.append(best)
        for organ in set(awake[best]) & covering.keys():
            covering[organ].add(best)
    return chosen


def _recent(standing: Standing, window: int) -> Rounds:
    """The rounds that count for the choice: half a window, so that a site that fails can be made good within the other half."""
    first = standing.number - (window + 1) // 2 + 1 if window else 1
    return {number: past for number, past in standing.rounds.items() if number >= first}


def _age(organ: str, standing: Standing) -> tuple[int, float]:
    """Sorts the organ that was longest without a counted training first."""
    return max((n for n, past in standing.rounds.items() if organ in past.votes), default=0), _lot(organ, standing)


def _fitness(
    site: str, organs: Collection[str], lacking: Collection[str], covering: Mapping[str, set[str]], standing: Standing
) -> tuple[int, int, int, int, float]:
    """Sorts reliable sites first, then those that cover more of what is lacking, then those asked longest ago."""
    gain = sum(organ in lacking and site not in covering[organ] for organ in organs)
    return misses_in_a_row(site, standing.rounds), -gain, *_turn(site, standing)


def _turn(site: str, standing: Standing) -> tuple[int, int, float]:
    """Sorts the site that was asked longest ago first, of equals the one that was asked less often."""
    return last_asked(site, standing.rounds), times_asked(site, standing.rounds), _lot(site, standing)


def _lot(name: str, standing: Standing) -> float:
    return float(stream(standing.seed, "choice of sites", standing.number, name).random())
