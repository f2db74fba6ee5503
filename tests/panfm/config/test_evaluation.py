"""When sites evaluate, and what a rule for the best round may be."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import Any

import pytest

from panfm import recipes
from panfm.config import EvaluationConfig
from panfm.errors import ConfigError


@pytest.mark.parametrize(
    ("every", "rounds", "due"), [(0, 7, []), (1, 3, [1, 2, 3]), (3, 7, [3, 6, 7]), (3, 6, [3, 6]), (9, 4, [4])]
)
def test_every_so_many_rounds_and_after_the_last(every: int, rounds: int, due: list[int]) -> None:
    config = EvaluationConfig(every=every)
    assert [number for number in range(1, rounds + 1) if config.is_due(number, rounds)] == due


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"every": -1}, "every"),
        ({"max_subjects": 0}, "max_subjects"),
        ({"numbers": ["age*"]}, "letters"),
        ({"classes": ["loss"]}, "cannot be a label"),
        ({"numbers": ["age"], "classes": ["age"]}, "twice"),
        ({"best_by": "age"}, "best_by must be one of relative_loss, loss"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        EvaluationConfig(**settings)


def test_it_travels_in_a_recipe_that_a_site_will_read() -> None:
    chosen = ["federation.evaluation.numbers=[age]", "federation.evaluation.classes=[sex,cat_]"]
    recipe = recipes.recipe_of(recipes.load(["recipe=smoke", *chosen, "federation.evaluation.best_by=cat_"]))
    text = recipes.to_yaml(recipe)
    assert not set("&*!") & set(text), "a site refuses a recipe with YAML's signs in it"
    assert recipes.recipe_from_yaml(text).federation.evaluation.probes == ("age", "sex", "cat_")
