"""The votes of the sites, against the formulas of DESIGN section 5 written out in exact fractions."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import FederationConfig, TrunkWeighting
from panfm.organs import SEVEN_ORGANS
from panfm.protocol import SiteUpdate
from server.aggregation.votes import Vote, vote_of
from server.aggregation.weights import group_weights, step_scales, voters

ORGANS = SEVEN_ORGANS
Counts = dict[str, dict[str, int]]
MakeUpdate = Callable[..., SiteUpdate]

# One subject beside thousands: only with many organs and uneven sites do the bounds of `balanced` bite.
numbers = st.integers(1, 5000) | st.sampled_from([1, 5000])
counts_of_a_site = st.dictionaries(st.sampled_from(ORGANS), numbers, min_size=1)
rounds = st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), counts_of_a_site, min_size=1)


def _votes(counts: Counts, make_update: MakeUpdate) -> list[Vote]:
    """Each site sends trunk, heads and the groups of its organs; no subject has two organs."""
    return [
        vote_of(
            make_update(
                site,
                {
                    "trunk.w": torch.ones(1),
                    "heads.w": torch.ones(1),
                    **{f"organs.{organ}.w": torch.ones(1) for organ in organs},
                },
                organs,
                num_subjects=sum(organs.values()),
            )
        )
        for site, organs in counts.items()
    ]


def _balanced_by_hand(counts: Counts) -> dict[str, Fraction]:
    subjects = {site: sum(organs.values()) for site, organs in counts.items()}
    say = {}
    for site, organs in counts.items():
        say[site] = Fraction(0)
        for organ, count in organs.items():
            total = 0
            for other in counts.values():
                total += other.get(organ, 0)
            say[site] += Fraction(count, total)
    clipped = {}
    for site in counts:
        by_subjects = Fraction(subjects[site], sum(subjects.values()))
        weight = say[site] / sum(say.values())
        clipped[site] = min(max(weight, by_subjects / 5), 5 * by_subjects)
    return {site: weight / sum(clipped.values()) for site, weight in clipped.items()}


@given(counts=rounds)
def test_balanced_is_the_formula(counts: Counts, make_update: MakeUpdate) -> None:
    config = FederationConfig(trunk_weights=TrunkWeighting.balanced)
    weights = group_weights("trunk", _votes(counts, make_update), config)
    expected = _balanced_by_hand(counts)
    assert list(weights) == sorted(counts)
    assert all(math.isclose(weights[site], expected[site], rel_tol=1e-12) for site in counts)


@given(counts=rounds)
def test_subjects_and_uniform_are_the_formulas(counts: Counts, make_update: MakeUpdate) -> None:
    votes = _votes(counts, make_update)
    total = sum(sum(organs.values()) for organs in counts.values())
    subjects = group_weights("trunk", votes, FederationConfig())
    uniform = group_weights("trunk", votes, FederationConfig(trunk_weights=TrunkWeighting.uniform))
    for site, organs in counts.items():
        assert math.isclose(subjects[site], Fraction(sum(organs.values()), total), rel_tol=1e-14)
        assert math.isclose(uniform[site], Fraction(1, len(counts)), rel_tol=1e-14)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@given(counts=rounds)
def test_an_organ_is_weighted_by_its_own_subjects(exponent: float, counts: Counts, make_update: MakeUpdate) -> None:
    weights = group_weights("heart", _votes(counts, make_update), FederationConfig(organ_exponent=exponent))
    votes = {site: organs["heart"] ** exponent for site, organs in counts.items() if "heart" in organs}
    assert weights.keys() == votes.keys()
    assert all(math.isclose(weights[site], votes[site] / sum(votes.values()), rel_tol=1e-12) for site in votes)


@given(counts=rounds, weighting=st.sampled_from(TrunkWeighting), data=st.data())
def test_weights_sum_to_one_and_ignore_arrival_order(
    counts: Counts, weighting: TrunkWeighting, data: st.DataObject, make_update: MakeUpdate
) -> None:
    votes = _votes(counts, make_update)
    config = FederationConfig(trunk_weights=weighting)
    for group in ("trunk", *ORGANS):
        weights = group_weights(group, votes, config)
        shuffled = group_weights(group, data.draw(st.permutations(votes)), config)
        assert weights == shuffled
        assert list(weights) == list(shuffled) == sorted(weights)
        assert not weights or abs(math.fsum(weights.values()) - 1) <= 4 * 2**-53


@given(counts=rounds)
def test_balanced_stays_within_the_promised_multiples(counts: Counts, make_update: MakeUpdate) -> None:
    votes = _votes(counts, make_update)
    balanced = group_weights("trunk", votes, FederationConfig(trunk_weights=TrunkWeighting.balanced))
    subjects = group_weights("trunk", votes, FederationConfig())
    slack = 1 + 1e-12
    assert all(1 / 6 / slack <= balanced[site] / subjects[site] <= 25 * slack for site in counts)


def test_balanced_gives_a_small_site_with_a_rare_organ_more_say(make_update: MakeUpdate) -> None:
    # By hand: brain site 90 of 100 subjects, heart site 10. Each organ has half the say: .5 and .5; the heart site's
    # bound is 5 * .1 = .5, which it just meets, so nothing is clipped.
    counts = {"brains": {"brain": 90}, "hearts": {"heart": 10}}
    config = FederationConfig(trunk_weights=TrunkWeighting.balanced)
    assert group_weights("trunk", _votes(counts, make_update), config) == pytest.approx({"brains": 0.5, "hearts": 0.5})
    # With 99 and 1 the heart site is cut to 5 * .01 = .05, and .5 + .05 is renormalised.
    counts = {"brains": {"brain": 99}, "hearts": {"heart": 1}}
    weights = group_weights("trunk", _votes(counts, make_update), config)
    assert weights == pytest.approx({"brains": 0.5 / 0.55, "hearts": 0.05 / 0.55})


def test_balanced_holds_a_large_site_of_one_organ_at_its_floor(make_update: MakeUpdate) -> None:
    # By hand: 9,994 brains beside one subject of each other organ. Each site has 1/7 of the say; the brain site is lifted
    # to .2 * .9994, the others cut to 5 * .0001. These sum to .20288, so the others end at 24.6 times their subjects.
    counts = {organ: {organ: 9994 if organ == "brain" else 1} for organ in ORGANS}
    config = FederationConfig(trunk_weights=TrunkWeighting.balanced)
    weights = group_weights("trunk", _votes(counts, make_update), config)
    assert weights["brain"] == pytest.approx(0.19988 / 0.20288)
    assert weights["heart"] == pytest.approx(0.0005 / 0.20288)


@pytest.mark.parametrize("weighting", TrunkWeighting)
def test_equal_sites_have_equal_votes(weighting: TrunkWeighting, make_update: MakeUpdate) -> None:
    counts = {site: dict.fromkeys(ORGANS, 8) for site in "abcd"}
    config = FederationConfig(trunk_weights=weighting)
    assert set(group_weights("heads", _votes(counts, make_update), config).values()) == {0.25}


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_no_vote_without_a_subject_or_without_a_tensor(exponent: float, make_update: MakeUpdate) -> None:
    heart = {"organs.heart.w": torch.ones(1)}
    updates: list[SiteUpdate] = [
        make_update("sent_without_subjects", heart, {"brain": 3, "heart": 0}),
        make_update("subjects_without_tensor", {"trunk.w": torch.ones(1)}, {"heart": 9}),
        make_update("both", heart, {"heart": 2}),
    ]
    votes = [vote_of(update) for update in updates]
    assert group_weights("heart", votes, FederationConfig(organ_exponent=exponent)) == {"both": 1.0}
    assert [vote.site for vote in voters("trunk", votes)] == ["subjects_without_tensor"]
    assert group_weights("kidney", votes, FederationConfig()) == {}


@given(steps=st.dictionaries(st.sampled_from("abcde"), st.integers(1, 100), min_size=1), data=st.data())
def test_unequal_steps_are_normalised_as_in_fednova(steps: dict[str, int], data: st.DataObject) -> None:
    """In exact fractions: (sum of w t) * (sum of w d / t), with the scales multiplied into the mean."""
    counts = {site: data.draw(st.integers(1, 50)) for site in steps}
    weights = {site: counts[site] / sum(counts.values()) for site in steps}
    deltas = {site: data.draw(st.integers(-9, 9)) for site in steps}
    exact = {site: Fraction(counts[site], sum(counts.values())) for site in steps}
    mean_steps = sum((exact[site] * steps[site] for site in steps), Fraction(0))
    per_step = sum((exact[site] * deltas[site] / steps[site] for site in steps), Fraction(0))
    scales = step_scales(steps, weights)
    found = math.fsum(weights[site] * scales[site] * deltas[site] for site in steps)
    assert found == pytest.approx(float(mean_steps * per_step), rel=1e-12, abs=1e-12)
    if len(set(steps.values())) == 1:
        assert set(scales.values()) == {1.0}


def test_a_site_that_did_no_step_is_not_divided_by_zero() -> None:
    assert step_scales({"a": 0, "b": 4}, {"a": 0.5, "b": 0.5}) == {"a": 1.0, "b": 0.5}
