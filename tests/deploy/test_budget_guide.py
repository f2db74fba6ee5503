"""The guide to the budget says true numbers: each figure that follows from arithmetic is computed again."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from panfm import recipes
from panfm.config import PrivacyMode
from panfm.groups import SHARED_GROUPS, keep_groups
from panfm.models.build import initial_parameters
from panfm.pretrain.private_scope import trained_names
from panfm.privacy.accounting import Budget, NoisySteps
from panfm.privacy.planning import fits, noise_to_signal

TEXT = (Path(__file__).resolve().parents[2] / "deploy" / "guides" / "budget.md").read_text()
RATE, STEPS, DELTA = 0.25, 200, 1e-5
EPSILONS = (8.0, 3.0, 1.0)
NOISE = [float(number) for number in re.findall(r"noise multipliers ([\d.]+), ([\d.]+) and ([\d.]+),", TEXT)[0]]
ROWS = re.findall(r"^\| ([\d,]+) \| (tiny|small)[^,|]*, (\w+) \| ([\d,]+) \| (.+) \|$", TEXT, re.MULTILINE)


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def test_rows_are_found() -> None:
    assert len(ROWS) == 12
    assert "200 steps in all" in TEXT
    assert "a chance of 1 in 4, delta 1e-5, three organs" in " ".join(TEXT.split())


@pytest.mark.parametrize(("epsilon", "noise"), list(zip(EPSILONS, NOISE, strict=True)))
def test_noise_multipliers_are_the_least_that_fit(epsilon: float, noise: float) -> None:
    budget = Budget(epsilon=epsilon, delta=DELTA)
    plan = [NoisySteps(noise_multiplier=number, sampling_rate=RATE, steps=STEPS) for number in (noise, noise - 1e-3)]
    assert [fits(budget, [steps]) for steps in plan] == [True, False]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:3]))
def test_noise_to_signal_is_the_planned_one(row: tuple[str, ...]) -> None:
    subjects, _, _, parameters, told = row
    for noise, text in zip(NOISE, told.split(" | "), strict=True):
        ratio = noise_to_signal(noise, RATE * _number(subjects), _number(parameters))
        assert float(text) == pytest.approx(ratio, rel=0.04), "rounded to two digits"


@pytest.mark.parametrize(("size", "word"), sorted({(size, word) for _, size, word, _, _ in ROWS}))
def test_parameters_are_those_that_such_a_site_trains(size: str, word: str) -> None:
    recipe, mode = recipes.recipe_of(recipes.load(["recipe=demo", f"model={size}"])), PrivacyMode(word)
    organs = list(recipe.organs)[:3]
    model = keep_groups(initial_parameters(recipe.model, recipe.organs, 0), (*SHARED_GROUPS, *organs))
    trained = sum(model[name].numel() for name in trained_names(model, mode, recipe, organs))
    assert {_number(parameters) for _, *which, parameters, _ in ROWS if which == [size, word]} == {trained}


@pytest.mark.parametrize(
    ("epsilon", "sure", "found"), re.findall(r"^\| (\d) \| ([\d.]+) % \| ([\d.]+|all)", TEXT, re.MULTILINE)
)
def test_what_an_attacker_can_know_follows_from_the_definition(epsilon: str, sure: str, found: str) -> None:
    odds = math.exp(float(epsilon))
    assert float(sure) == pytest.approx(100 * odds / (1 + odds), abs=0.5 * 10.0 ** -len(sure.partition(".")[2]))
    share = 100 * (odds * 1e-3 + DELTA)
    if found == "all":
        assert share > 100
    else:
        assert float(found) == pytest.approx(share, abs=0.05)
