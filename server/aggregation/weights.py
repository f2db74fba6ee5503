"""How much each site's update counts, group by group: an organ's adapter belongs to the sites that image the organ.

A site votes on a group when it sent the group and, for an organ, trained on subjects with that organ. Counts are those
of the accepted updates of this round; nobody is imputed and an absent organ has no weight.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from panfm.config import FederationConfig, TrunkWeighting
from panfm.groups import SHARED_GROUPS, group_of
from panfm.protocol import SiteUpdate

BALANCED_BOUNDS: tuple[float, float] = (0.2, 5.0)
"""`balanced` keeps each site between these multiples of its `subjects` weight, before renormalising."""


def voters(group: str, updates: Sequence[SiteUpdate]) -> list[SiteUpdate]:
    """The updates that have a vote on the group, in the order of their sites' names."""
    return sorted((update for update in updates if _has_vote(group, update)), key=lambda update: update.site)


def group_weights(group: str, updates: Sequence[SiteUpdate], config: FederationConfig) -> dict[str, float]:
    """Each voter's weight in the mean of one group, by site in sorted order.

    An organ's group: proportional to (subjects with the organ) ** `organ_exponent`. Trunk and heads:

    - `subjects`: proportional to the site's subjects.
    - `uniform`: the same for each site.
    - `balanced`: each organ has the same total say, shared by its subjects: sum over the site's organs o of n_o / N_o,
      N_o summed over this round's voters. Normalised, clipped to 0.2 to 5 times the site's `subjects` weight, and
      renormalised once. The clipped weights sum to between 0.2 and 1.2, so what is promised after renormalising is
      1/6 to 25 times the `subjects` weight; the far end needs one tiny site that alone holds nearly all organs.

    Returns: site -> weight; sums to 1 within fp64 rounding; empty when no site has a vote.
    """
    voting = voters(group, updates)
    if not voting:
        return {}
    if group not in SHARED_GROUPS:
        return _normalised({update.site: update.organ_subjects[group] ** config.organ_exponent for update in voting})
    if config.trunk_weights is TrunkWeighting.uniform:
        return _normalised({update.site: 1.0 for update in voting})
    by_subjects = _normalised({update.site: float(update.num_subjects) for update in voting})
    if config.trunk_weights is TrunkWeighting.subjects:
        return by_subjects
    return _balanced(voting, by_subjects)


def _has_vote(group: str, update: SiteUpdate) -> bool:
    sent = any(group_of(name) == group for name in update.deltas)
    return sent and (group in SHARED_GROUPS or update.organ_subjects.get(group, 0) > 0)


def _balanced(voting: Sequence[SiteUpdate], by_subjects: Mapping[str, float]) -> dict[str, float]:
    organs = sorted({organ for update in voting for organ, count in update.organ_subjects.items() if count > 0})
    totals = {organ: sum(update.organ_subjects.get(organ, 0) for update in voting) for organ in organs}
    say = _normalised(
        {
            update.site: math.fsum(update.organ_subjects.get(organ, 0) / totals[organ] for organ in organs)
            for update in voting
        }
    )
    low, high = BALANCED_BOUNDS
    return _normalised(
        {site: min(max(weight, low * by_subjects[site]), high * by_subjects[site]) for site, weight in say.items()}
    )


def _normalised(votes: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(votes.values())
    return {site: votes[site] / total for site in sorted(votes)}
