"""What each organ got, window by window, and when a run may be called complete."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import FederationConfig, OrganGrid, ParticipationConfig, Recipe
from panfm.reporting.record import Event
from server.attendance import ACCEPTED, LATE, Attendance
from server.coverage import coverage_rows, latest_coverage, organ_coverage, shortfall
from tests.server.past import a_round, attendance, joined

ORGANS = ("brain", "heart", "liver")


def _recipe(min_sites: int = 1, **participation: Any) -> Recipe:
    federation = FederationConfig(min_sites=min_sites, participation=ParticipationConfig(**participation))
    return Recipe(organs={organ: OrganGrid() for organ in ORGANS}, federation=federation)


def _past(*votes: dict[str, str]) -> Attendance:
    """Rounds: organ -> sites with a vote, in one string. Sites a and b hold everything but the liver."""
    rounds: list[list[Event]] = []
    for number, counted in enumerate(votes, start=1):
        by_group = {organ: sites.split() for organ, sites in counted.items()}
        outcomes = {site: ACCEPTED for sites in by_group.values() for site in sites}
        rounds.append(a_round(number, {**by_group, "trunk": sorted(outcomes)} if outcomes else {}, **outcomes))
    return attendance(joined(a="brain heart", b="brain heart"), *rounds)


def test_a_run_in_which_every_offered_organ_counted_is_complete() -> None:
    past = _past({"brain": "a"}, {"heart": "b"})
    assert shortfall(past, _recipe()) == ""
    assert coverage_rows(past, _recipe()) == [
        {
            "organ": organ,
            "offered_by": held,
            "needed": needed,
            "fewest": sites,
            "sites": sites,
            "rounds": rounds,
            "window": 0,
        }
        for organ, held, needed, sites, rounds in (("brain", 2, 1, 1, 1), ("heart", 2, 1, 1, 1), ("liver", 0, 0, 0, 0))
    ]


@pytest.mark.parametrize(
    ("past", "recipe", "reason"),
    [
        (_past(), _recipe(), "nobody's training counted in any round"),
        (_past({}, {}), _recipe(), "nobody's training counted in any round"),
        (_past({"brain": "a"}), _recipe(), "nobody's training of heart counted"),
        (_past({"brain": "a", "heart": "b"}, {}), _recipe(), "fewer than 1 sites were accepted in round 2"),
        (
            _past({"brain": "a", "heart": "a"}, {"brain": "b", "heart": "a b"}),
            _recipe(min_sites=2),
            "fewer than 2 sites were accepted in round 1",
        ),
        (_past({"brain": "a", "heart": "a"}), _recipe(coverage={"liver": 1}), "nobody's training of liver counted"),
        (
            _past({"brain": "a", "heart": "a"}, {"brain": "a"}),
            _recipe(coverage={"brain": 2, "heart": 0}),
            "brain was covered by 1 of 2 sites in the run",
        ),
        (
            _past({"brain": "a", "heart": "b"}, {"brain": "a"}, {"brain": "b"}, {"brain": "b", "heart": "a"}),
            _recipe(window=2),
            "heart was covered by 0 of 1 sites in some 2 rounds in a row",
        ),
        (
            _past({"brain": "a", "heart": "b"}, {"brain": "a b"}, {"brain": "b", "heart": "a"}),
            _recipe(window=3, coverage={"heart": 3}),
            "heart was covered by 2 of 3 sites in some 3 rounds in a row",
        ),
    ],
)
def test_a_run_below_its_coverage_says_what_it_lacks(past: Attendance, recipe: Recipe, reason: str) -> None:
    assert shortfall(past, recipe) == reason


def test_an_update_that_was_held_back_covers_nothing() -> None:
    """Accepted, but without a vote on the organ's group: federation.min_sites_per_group held it back."""
    past = attendance(joined(a="brain"), a_round(1, {"trunk": ["a"]}, a=ACCEPTED), a_round(2, {"trunk": ["a"]}, a=LATE))
    assert shortfall(past, _recipe()) == (
        "fewer than 1 sites were accepted in round 2; nobody's training of brain counted"
    )


def test_an_organ_whose_only_site_left_is_not_forgotten() -> None:
    past = attendance(joined(a="brain", b="liver"), a_round(1, {"trunk": ["a"], "brain": ["a"]}, a=ACCEPTED))
    assert shortfall(past, _recipe()) == "nobody's training of liver counted"


_VOTES = st.lists(st.dictionaries(st.sampled_from(ORGANS), st.sampled_from(["a", "b", "a b"])), max_size=7)


@given(_VOTES, st.integers(0, 8), st.integers(1, 2))
def test_fewest_is_that_of_the_poorest_window(votes: list[dict[str, str]], window: int, needed: int) -> None:
    """The slow way: every stretch of rounds, counted out."""
    past, recipe = _past(*votes), _recipe(window=window, coverage={"liver": needed})
    length = len(votes) if window == 0 else min(window, len(votes))
    for organ in organ_coverage(past, recipe):
        counts = [
            len({site for counted in votes[start : start + length] for site in counted.get(organ.organ, "").split()})
            for start in range(len(votes) - length + 1)
            if votes
        ]
        assert organ.fewest == min(counts, default=0)
        assert organ.rounds == sum(organ.organ in counted for counted in votes)
        if organ.fewest < organ.needed:
            assert shortfall(past, recipe)


@given(_VOTES, st.integers(0, 8))
def test_coverage_of_the_round_that_ends_is_that_of_the_window_up_to_it(
    votes: list[dict[str, str]], window: int
) -> None:
    recipe = _recipe(window=window)
    for number in range(1, len(votes) + 1):
        now = {organ: sites.split() for organ, sites in votes[number - 1].items()}
        told = latest_coverage(_past(*votes[: number - 1]), recipe, number, now)
        last = votes[max(0, number - window) if window else 0 : number]
        assert told == {organ: len({s for v in last for s in v.get(organ, "").split()}) for organ in ORGANS}
