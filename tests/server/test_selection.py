"""Whom a round asks: every organ in time, every site in turn, and the same sites for the same past."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm.config import FederationConfig, ParticipationConfig
from panfm.reporting.record import Event
from server.attendance import ACCEPTED, LATE, Rounds
from server.selection import REST, Standing, choose_sites
from tests.server.past import a_round, attendance

FAILED = "failed"
Offers = dict[str, tuple[str, ...]]


def _federation(seats: int = 0, window: int = 0, min_sites: int = 1, **participation: int) -> FederationConfig:
    settings = ParticipationConfig(sites_per_round=seats, window=window, **participation)  # type: ignore[arg-type]
    return FederationConfig(min_sites=min_sites, participation=settings)


def _standing(number: int, rounds: Rounds, needed: Mapping[str, int], seed: int = 0) -> Standing:
    return Standing(seed=seed, number=number, rounds=rounds, needed=needed)


def _played(
    offers: Offers,
    needed: Mapping[str, int],
    federation: FederationConfig,
    num_rounds: int,
    *,
    seed: int = 0,
    fails: Mapping[tuple[int, str], str] | None = None,
) -> list[dict[str, str]]:
    """Rounds that are really chosen, each from what became of those before: round -> site -> what became of it."""
    events: list[list[Event]] = []
    played: list[dict[str, str]] = []
    for number in range(1, num_rounds + 1):
        standing = _standing(number, attendance(*events).finished(), needed, seed)
        chosen = choose_sites(offers, standing, federation)
        outcomes = {site: (fails or {}).get((number, site), ACCEPTED) for site in chosen}
        counted = [site for site, outcome in outcomes.items() if outcome == ACCEPTED]
        organs = {organ for site in counted for organ in offers[site]}
        votes = {organ: [site for site in counted if organ in offers[site]] for organ in organs}
        events.append(a_round(number, votes, **outcomes))
        played.append(outcomes)
    return played


def test_all_are_asked_where_no_seats_are_counted() -> None:
    offers: Offers = {"b": ("brain",), "a": ("liver",), "c": ("brain",)}
    assert _played(offers, {"brain": 1, "liver": 1}, _federation(), 2) == [dict.fromkeys("abc", ACCEPTED)] * 2
    assert _played(offers, {}, _federation(seats=9), 1) == [dict.fromkeys("abc", ACCEPTED)]


ORGANS = ("brain", "heart", "liver", "kidney", "spleen")


@given(
    held=st.lists(st.sets(st.sampled_from(ORGANS), min_size=1), min_size=1, max_size=7),
    seats=st.integers(1, 4),
    window=st.integers(1, 8),
    seed=st.integers(0, 3),
)
def test_every_organ_is_covered_in_every_window_that_has_seats_enough(
    held: list[set[str]], seats: int, window: int, seed: int
) -> None:
    """A site's seat covers at least the organ that has waited longest; half a window is there for the queue."""
    offers: Offers = {f"s{place}": tuple(sorted(organs)) for place, organs in enumerate(held)}
    organs = sorted(set().union(*held))
    queue = math.ceil(len(organs) / seats)
    if queue > window // 2 + 1:
        window = 2 * queue
    played = _played(offers, dict.fromkeys(organs, 1), _federation(seats, window), 3 * window, seed=seed)
    for start in range(len(played) - window + 1):
        asked = {site for outcomes in played[start : start + window] for site in outcomes}
        assert {organ for site in asked for organ in offers[site]} == set(organs)


def test_an_organ_that_needs_two_sites_gets_two_different_ones() -> None:
    offers: Offers = {"a": ("brain",), "b": ("brain",), **{f"l{n}": ("liver",) for n in range(6)}}
    played = _played(offers, {"brain": 2, "liver": 1}, _federation(seats=1, window=6), 24)
    for start in range(len(played) - 5):
        assert {"a", "b"} <= {site for outcomes in played[start : start + 6] for site in outcomes}


def test_an_organ_that_nobody_can_cover_keeps_no_seat_from_others() -> None:
    offers: Offers = {"a": ("brain",), "b": ("liver",), "c": ("liver",)}
    played = _played(offers, {"brain": 3, "liver": 1, "heart": 1}, _federation(seats=2, window=2), 6)
    assert all(len(outcomes) == 2 for outcomes in played)
    assert all("a" in outcomes for outcomes in played)


def test_a_site_that_failed_is_made_good_by_another_within_the_window() -> None:
    offers: Offers = {"a": ("brain",), "b": ("brain",), **{f"l{n}": ("liver",) for n in range(4)}}
    federation, needed = _federation(seats=1, window=8), {"brain": 1, "liver": 1}
    first = next(
        (number, site)
        for number, outcomes in enumerate(_played(offers, needed, federation, 8), start=1)
        for site in outcomes
        if site in ("a", "b")
    )
    played = _played(offers, needed, federation, 8, fails={first: FAILED})
    asked = [(number, site) for number, outcomes in enumerate(played, start=1) for site in outcomes if site in "ab"]
    assert asked[0] == first
    number, site = asked[1]
    assert number == first[0] + 1, "the organ waited longest, so it is first in the next round"
    assert site != first[1]


@settings(max_examples=40)
@given(seats=st.integers(1, 6), num_sites=st.integers(1, 7), seed=st.integers(0, 9))
def test_sites_are_asked_in_turn_where_no_organ_lacks(seats: int, num_sites: int, seed: int) -> None:
    offers: Offers = {f"s{n}": ("brain",) for n in range(num_sites)}
    played = _played(offers, {"brain": 0}, _federation(seats), 10, seed=seed)
    asked = Counter(site for outcomes in played for site in outcomes)
    assert all(len(outcomes) == min(seats, num_sites) for outcomes in played)
    assert len(asked) == num_sites or 10 * seats < num_sites
    assert max(asked.values()) - min(asked.values()) <= 1


def test_no_site_is_favoured_for_its_name() -> None:
    offers: Offers = {f"s{n}": ("brain",) for n in range(4)}
    first = Counter(
        site for seed in range(400) for site in _played(offers, {"brain": 1}, _federation(1), 1, seed=seed)[0]
    )
    assert set(first) == set(offers)
    # 400 draws of 4: 100 each, standard deviation 8.7
    assert all(60 <= count <= 140 for count in first.values())


@settings(max_examples=30)  # each plays twelve rounds
@given(st.randoms(use_true_random=False), st.integers(1, 3), st.integers(0, 5))
def test_choice_does_not_depend_on_the_order_in_which_sites_came(order: random.Random, seats: int, window: int) -> None:
    offers: Offers = {f"s{n}": tuple(ORGANS[n % 3 : n % 3 + 2]) for n in range(6)}
    shuffled = list(offers.items())
    order.shuffle(shuffled)
    needed = dict.fromkeys(ORGANS[:4], 1)
    federation = _federation(seats, window)
    assert _played(offers, needed, federation, 6) == _played(dict(shuffled), needed, federation, 6)


def test_choice_of_a_round_looks_at_no_later_one_and_at_no_measured_time() -> None:
    offers: Offers = {f"s{n}": ("brain",) for n in range(5)}
    fast = attendance(a_round(1, {"brain": ["s0"]}, s0=ACCEPTED)).finished(before=2)
    slow = attendance(a_round(1, {"brain": ["s0"]}, 1e4, s0=ACCEPTED)).finished(before=2)
    later = attendance(a_round(1, {"brain": ["s0"]}, s0=ACCEPTED), a_round(2, {"brain": ["s1"]}, s1=ACCEPTED)).finished(
        before=2
    )
    chosen = {
        choose_sites(offers, _standing(2, rounds, {"brain": 1}), _federation(2)) for rounds in (fast, slow, later)
    }
    assert len(chosen) == 1


@pytest.mark.parametrize("seats", [0, 2])
def test_a_site_that_was_late_again_and_again_rests_and_is_tried_now_and_then(seats: int) -> None:
    offers: Offers = {"a": ("brain",), "b": ("brain",)}
    late = {(number, "b"): LATE for number in range(1, 40)}
    asked = [
        number
        for number, outcomes in enumerate(_played(offers, {}, _federation(seats), 16, fails=late), start=1)
        if "b" in outcomes
    ]
    assert asked == [1, 2, 2 + REST, 2 + 2 * REST, 2 + 3 * REST]
    mended = {key: outcome for key, outcome in late.items() if key[0] < 2 + REST}
    played = _played(offers, {}, _federation(seats), 9, fails=mended)
    assert ["b" in outcomes for outcomes in played[5:]] == [True] * 4, "it answered, and is asked again"
    waited_for = _federation(seats, late_in_a_row=0)
    assert all("b" in outcomes for outcomes in _played(offers, {}, waited_for, 9, fails=late))


def test_nobody_rests_where_too_few_would_be_left() -> None:
    offers: Offers = {"a": ("brain",), "b": ("brain",)}
    late = {(number, "b"): LATE for number in range(1, 9)}
    both = replace(_federation(), min_sites=2)
    assert all("b" in outcomes for outcomes in _played(offers, {}, both, 8, fails=late))
