"""The benchmark of Saliency-Guided Masking: matched rates, the averaging that knows of no organs, intervals over seeds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.sgm_arms import Arm, Masking, Scheme, of_every_organ, uniform_rate
from benchmarks.sgm_cohort import Generator
from benchmarks.sgm_tables import AS_PUBLISHED, Found, by_seed, dominant_organs, estimate, gain, missing
from panfm.config import FederationConfig
from panfm.organs import SEVEN_ORGANS
from server.aggregation.next_model import aggregate_round
from server.aggregation.state import ServerState
from server.aggregation.votes import DeltasInMemory, Vote


def hidden_share(rate: float, present: list[int]) -> float:
    """Share of the organs present that uniform dropout hides, from the binomial's own table."""
    hidden = [sum(min(k, n - 1) * binom.pmf(k, n, rate) for k in range(n + 1)) for n in present]
    return sum(hidden) / sum(present)


@given(st.floats(0.01, 0.7), st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_the_matched_rate_hides_what_was_asked(rate: float, present: list[int]) -> None:
    organs_of = [frozenset(SEVEN_ORGANS[:number]) for number in present]
    found = uniform_rate(hidden_share(rate, present), organs_of)
    assert hidden_share(found, present) == pytest.approx(hidden_share(rate, present), abs=1e-9)


def test_a_blind_mean_is_thinned_by_those_who_do_not_have_the_organ() -> None:
    start = {name: torch.zeros(2) for name in ("trunk.a", "heads.b", "organs.liver.c", "organs.heart.c")}

    def vote(site: str, organ: str, subjects: int, delta: float) -> Vote:
        names = ("trunk.a", "heads.b", f"organs.{organ}.c")
        deltas = DeltasInMemory({name: torch.full((2,), delta) for name in names})
        return Vote(site=site, deltas=deltas, num_subjects=subjects, organ_subjects={organ: subjects}, num_steps=1)

    votes = [vote("north", "liver", 30, 4.0), vote("south", "heart", 10, 8.0)]
    blind = [of_every_organ(one, start, ("liver", "heart")) for one in votes]
    config, momentum = FederationConfig(), lambda steps: -0.1
    knowing, thinned = (
        aggregate_round(start, start, some, ServerState(), config, momentum).student for some in (votes, blind)
    )
    assert knowing["organs.liver.c"].tolist() == [4.0, 4.0]
    assert thinned["organs.liver.c"].tolist() == [3.0, 3.0]
    assert thinned["organs.heart.c"].tolist() == [2.0, 2.0]
    assert torch.equal(knowing["trunk.a"], thinned["trunk.a"])


def made_up(value: float, share: float = 0.0) -> Found:
    shares = np.full(7, (1 - share) / 6)
    shares[5] = share  # the spleen
    return Found(
        complete=np.full(5, value),
        values=np.full((127, 5), value),
        by_hospital=np.full((6, 5), value),
        share=shares,
        evenness=0.9,
        seconds_per_step=0.1,
        masked_share=0.0,
        seconds=1.0,
    )


def test_a_gain_is_paired_over_the_seeds_that_both_arms_have() -> None:
    lift, none = ((Scheme.pooled, rule) for rule in (Masking.lift, Masking.none))
    values = {(lift, 0): 0.62, (none, 0): 0.60, (lift, 1): 0.70, (none, 1): 0.69, (lift, 2): 0.99}
    found = {Arm(scheme=kind[0], masking=kind[1], seed=seed): made_up(value) for (kind, seed), value in values.items()}
    one = gain(found, (lift, none), missing(0))
    assert one is not None
    assert one.each == pytest.approx((0.02, 0.01))
    assert one.value == pytest.approx(0.015)
    assert one.low >= 0.01 - 1e-9
    assert one.high <= 0.02 + 1e-9
    assert sorted(by_seed(found, lift)) == [0, 1, 2]


def test_an_interval_widens_with_what_seeds_disagree_on() -> None:
    apart = estimate([np.full(401, 0.0), np.full(401, 1.0), np.full(401, 2.0)])
    assert (apart.low, apart.high) == (0.0, 2.0)
    same = estimate([np.full(401, 1.0)] * 3)
    assert (same.low, same.high) == (1.0, 1.0)


def test_dominant_organs_are_measured_where_they_can_be() -> None:
    assert dominant_organs({}) == (AS_PUBLISHED, False)
    found = {Arm(scheme=Scheme.pooled, seed=seed): made_up(0.6, share=0.5) for seed in range(2)}
    organs, measured = dominant_organs(found)
    assert measured
    assert "spleen" in organs


def test_the_committed_generator_has_not_changed() -> None:
    """Whoever changes it begins the comparison anew: say so in benchmarks/sgm.md, and put the new name here."""
    assert Generator().folder_name == "cohort-f01d14bbd4fd"
