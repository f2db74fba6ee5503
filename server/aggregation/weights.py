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
from server.aggregation.votes import Vote

BALANCED_BOUNDS: tuple[float, float] = (0.2, 5.0)
"""`balanced` keeps each site between these multiples of its `subjects` weight, before renormalising."""


def voters(group: str, votes: Sequence[Vote]) -> list[Vote]:
    """The updates that have a vote on the group, in the order of their sites' names."""
    return sorted((vote for vote in votes if _counts(group, vote)), key=lambda vote: vote.site)


def group_weights(group: str, votes: Sequence[Vote], config: FederationConfig) -> dict[str, float]:
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
    voting = voters(group, votes)
    if not voting:
        return {}
    if group not in SHARED_GROUPS:
        return _normalised({vote.site: vote.organ_subjects[group] ** config.organ_exponent for vote in voting})
    if config.trunk_weights is TrunkWeighting.uniform:
        return _normalised({vote.site: 1.0 for vote in voting})
    by_subjects = _normalised({vote.site: float(vote.num_subjects) for vote in voting})
    if config.trunk_weights is TrunkWeighting.subjects:
        return by_subjects
    return _balanced(voting, by_subjects)


def step_scales(num_steps: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """What each delta is multiplied with where sites did unequal numbers of steps: mean steps / own steps.

    With t_k the steps of site k and w_k its weight, the mean of the scaled deltas is (sum of w_k t_k) times the sum of
    w_k d_k / t_k: the mean movement per step, over the mean number of steps. Source: Wang et al. 2020, arXiv:2007.07481
    (FedNova), equation 6 for plain local steps. Equal steps scale by 1, and so does a site that did none.
    """
    mean_steps = math.fsum(weights[site] * num_steps[site] for site in sorted(weights)) / math.fsum(weights.values())
    if len({num_steps[site] for site in weights}) == 1:
        return dict.fromkeys(sorted(weights), 1.0)
    return {site: mean_steps / num_steps[site] if num_steps[site] else 1.0 for site in sorted(weights)}


def _counts(group: str, vote: Vote) -> bool:
    sent = any(group_of(name) == group for name in vote.deltas.names())
    return sent and (group in SHARED_GROUPS or vote.organ_subjects.get(group, 0) > 0)


def _balanced(voting: Sequence[Vote], by_subjects: Mapping[str, float]) -> dict[str, float]:
    organs = sorted({organ for vote in voting for organ, count in vote.organ_subjects.items() if count > 0})
    totals = {organ: sum(vote.organ_subjects.get(organ, 0) for vote in voting) for organ in organs}
    say = _normalised(
        {vote.site: math.fsum(vote.organ_subjects.get(organ, 0) / totals[organ] for organ in organs) for vote in voting}
    )
    low, high = BALANCED_BOUNDS
    return _normalised(
        {site: min(max(weight, low * by_subjects[site]), high * by_subjects[site]) for site, weight in say.items()}
    )


def _normalised(votes: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(votes.values())
    return {site: votes[site] / total for site in sorted(votes)}
