"""Shapley values against the definition: the mean gain over all orders in which organs could come."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from panfm.evaluation.organ_sets import all_sets
from panfm.evaluation.probes import Floats
from panfm.evaluation.shapley import evenness, shapley_values

FOUR = ("brain", "heart", "liver", "spleen")


def _game(seed: int, organs: tuple[str, ...]) -> dict[tuple[str, ...], Floats]:
    draws = np.random.default_rng(seed)
    return {held: draws.normal(size=3) for held in all_sets(organs)}


def test_values_are_the_mean_gain_over_all_orders() -> None:
    values = _game(1, FOUR)

    def worth(held: set[str]) -> Floats:
        return values[tuple(organ for organ in FOUR if organ in held)] if held else np.full(3, 0.5)

    gains: dict[str, list[Floats]] = {organ: [] for organ in FOUR}
    for order in permutations(FOUR):
        for place, organ in enumerate(order):
            gains[organ].append(worth(set(order[: place + 1])) - worth(set(order[:place])))
    found = shapley_values(values, FOUR, 0.5)
    for organ in FOUR:
        assert found[organ] == pytest.approx(np.mean(gains[organ], axis=0))


def test_values_sum_to_what_all_organs_add() -> None:
    values = _game(2, ("a", "b", "c", "d", "e", "f", "g"))
    found = shapley_values(values, ("a", "b", "c", "d", "e", "f", "g"), 0.5)
    assert np.sum(list(found.values()), axis=0) == pytest.approx(values["a", "b", "c", "d", "e", "f", "g"] - 0.5)


def test_an_organ_that_adds_the_same_to_every_set_gets_just_that() -> None:
    gain = {"brain": 0.2, "heart": 0.0, "liver": 0.05, "spleen": -0.1}
    values = {held: np.array([0.5 + sum(gain[organ] for organ in held)]) for held in all_sets(FOUR)}
    found = shapley_values(values, FOUR, 0.5)
    assert {organ: value[0] for organ, value in found.items()} == pytest.approx(gain)


def test_evenness_runs_from_one_organ_alone_to_all_alike() -> None:
    assert evenness([0.1, 0.1, 0.1, 0.1]) == pytest.approx(1)
    assert evenness([0.3, 0.0, -0.2, 0.0]) == pytest.approx(0)
    assert evenness([0.2, 0.2, 0.0, 0.0]) == pytest.approx(0.5)
    assert np.isnan(evenness([-0.1, -0.2]))
