"""An objective without its head, a head without its objective, and what no averaging or privacy allows are refused in words."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest

from panfm import recipes
from panfm.config import (
    FederationConfig,
    MaskSchedule,
    ModelConfig,
    Objective,
    OrganGrid,
    OrganMaskConfig,
    PretrainConfig,
    PrivacyConfig,
    PrivacyMode,
    Recipe,
    ServerOptimiser,
    ServerStepConfig,
)
from panfm.config.recipe import check_with_privacy
from panfm.errors import ConfigError

HEADS = {
    Objective.features: ModelConfig(),
    Objective.prototypes: ModelConfig(prototypes=64),
    Objective.pixels: ModelConfig(decoder_depth=1),
}


@pytest.mark.parametrize("objective", list(Objective))
def test_each_objective_goes_with_its_own_head_and_no_other(objective: Objective) -> None:
    for owner, model in HEADS.items():
        if owner is objective:
            Recipe(model=model, pretrain=PretrainConfig(objective=objective))
            continue
        with pytest.raises(ConfigError, match=r"model\.(prototypes|decoder_depth)"):
            Recipe(model=model, pretrain=PretrainConfig(objective=objective))


@pytest.mark.parametrize(
    "server",
    [
        *(ServerStepConfig(optimiser=kind) for kind in ServerOptimiser if kind is not ServerOptimiser.fedavg),
        ServerStepConfig(rate=1.5),
        ServerStepConfig(normalise_steps=True),
    ],
)
def test_a_centre_is_averaged_and_nothing_else(server: ServerStepConfig) -> None:
    federation = FederationConfig(server=server)
    Recipe(federation=federation)
    with pytest.raises(ConfigError, match="only their plain mean is a centre"):
        Recipe(
            federation=federation,
            model=HEADS[Objective.prototypes],
            pretrain=PretrainConfig(objective=Objective.prototypes),
        )


@pytest.mark.parametrize(
    ("objective", "word"), [(Objective.prototypes, "made of the other subjects"), (Objective.pixels, "no private step")]
)
def test_with_privacy_there_are_features_alone(objective: Objective, word: str) -> None:
    private = PrivacyConfig(mode=PrivacyMode.dp_adapters)
    with pytest.raises(ConfigError, match=word):
        Recipe(model=HEADS[objective], pretrain=PretrainConfig(objective=objective), privacy=private)
    plain = Recipe(model=HEADS[objective], pretrain=PretrainConfig(objective=objective))
    with pytest.raises(ConfigError, match=word):
        check_with_privacy(plain, [])


def test_with_privacy_organ_masking_has_no_schedule() -> None:
    moving = OrganMaskConfig(schedule=MaskSchedule.linear, start_rate=0.0)
    Recipe(pretrain=PretrainConfig(organ_mask=moving))
    with pytest.raises(ConfigError, match="schedule=linear cannot be had with privacy"):
        Recipe(
            organs={"brain": OrganGrid()},
            pretrain=PretrainConfig(organ_mask=moving),
            privacy=PrivacyConfig(mode=PrivacyMode.dp_full),
        )


def test_a_recipe_says_it_on_the_command_line_and_travels_whole() -> None:
    config = recipes.load(
        [
            "pretrain.objective=prototypes",
            "model.prototypes=128",
            "pretrain.prototypes.koleo=0.1",
            "pretrain.organ_mask.schedule=cosine",
            "pretrain.organ_mask.start_temperature=2.0",
        ]
    )
    assert config.pretrain.objective is Objective.prototypes
    assert (config.model.prototypes, config.pretrain.prototypes.koleo) == (128, 0.1)
    assert config.pretrain.organ_mask.start_temperature == 2.0
    travelled = recipes.run_from_yaml(recipes.to_yaml(config))
    assert (travelled.pretrain, travelled.model) == (config.pretrain, config.model)
    with pytest.raises(ConfigError, match=r"needs model\.decoder_depth above 0"):
        recipes.load(["pretrain.objective=pixels"])
