"""How a step computes is a matter of the recipe; what cannot go together is refused in words."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from panfm import recipes
from panfm.config import Precision, PretrainConfig, PrivacyConfig, PrivacyMode, PrototypeConfig, Recipe
from panfm.errors import ConfigError
from panfm.site.policy import bounded_names


def test_by_default_a_step_is_whole_and_in_fp32() -> None:
    config = PretrainConfig()
    assert (config.precision, config.accumulate, config.checkpointing) == (Precision.fp32, 1, False)


def test_a_recipe_carries_them_to_the_sites() -> None:
    words = ["pretrain.precision=bf16", "pretrain.accumulate=4", "pretrain.checkpointing=true"]
    run = recipes.load(["recipe=smoke", *words])
    sent = recipes.recipe_from_yaml(recipes.to_yaml(recipes.recipe_of(run))).pretrain
    assert (sent.precision, sent.accumulate, sent.checkpointing) == (Precision.bf16, 4, True)
    # A policy can bound the number of parts; precision it settles by approving recipes, as it does an objective.
    assert "pretrain.accumulate" in bounded_names()


def test_there_is_at_least_one_part_and_neighbours_are_of_the_whole_batch() -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.accumulate must be at least 1, got 0"):
        PretrainConfig(accumulate=0)
    spread = PrototypeConfig(koleo=0.1)
    PretrainConfig(prototypes=spread)
    with pytest.raises(ConfigError, match=r"koleo looks for .* set pretrain\.accumulate to 1, got 2"):
        PretrainConfig(prototypes=spread, accumulate=2)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (PretrainConfig(precision=Precision.bf16), r"pretrain\.precision=bf16 cannot be had with privacy"),
        (PretrainConfig(accumulate=2), r"pretrain\.accumulate .* cannot be had with privacy"),
        (PretrainConfig(checkpointing=True), r"pretrain\.checkpointing cannot be had with privacy"),
    ],
)
def test_privacy_computes_in_its_own_way(config: PretrainConfig, word: str) -> None:
    Recipe(pretrain=config)
    with pytest.raises(ConfigError, match=word):
        Recipe(pretrain=config, privacy=PrivacyConfig(mode=PrivacyMode.dp_adapters))
