"""Settings refuse what cannot be, always with a ConfigError that names the field."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from panfm.config import (
    AugmentConfig,
    CohortConfig,
    FederationConfig,
    LossWeights,
    ModelConfig,
    OrganGrid,
    OrganMaskConfig,
    PatchMaskConfig,
    PrepareConfig,
    PretrainConfig,
    Recipe,
    RunConfig,
)
from panfm.errors import ConfigError

WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (OrganGrid, {"shape": [32, 32]}, "shape"),
    (OrganGrid, {"shape": [32, 32, 0]}, "shape"),
    (OrganGrid, {"spacing_mm": []}, "spacing_mm"),
    (OrganGrid, {"spacing_mm": [1.0, 1.0, -1.0]}, "spacing_mm"),
    (PrepareConfig, {"margin_voxels": -1}, "margin_voxels"),
    (PrepareConfig, {"clip_percentiles": [1.0]}, "clip_percentiles"),
    (PrepareConfig, {"clip_percentiles": [1.0, 50.0, 99.0]}, "clip_percentiles"),
    (PrepareConfig, {"clip_percentiles": [99.0, 1.0]}, "clip_percentiles"),
    (ModelConfig, {"width": 0}, "width"),
    (ModelConfig, {"heads": 0}, "heads"),
    (ModelConfig, {"width": 96, "heads": 5}, "multiple of model.heads"),
    (ModelConfig, {"width": 12, "heads": 4}, "even"),
    (ModelConfig, {"width": 16, "heads": 4}, "6 or more"),
    (ModelConfig, {"depth": 0}, "depth"),
    (ModelConfig, {"mlp_ratio": 0.0}, "mlp_ratio"),
    (OrganMaskConfig, {"rate": 1.1}, "rate"),
    (OrganMaskConfig, {"explore": math.nan}, "explore"),
    (OrganMaskConfig, {"temperature": 0.0}, "temperature"),
    (OrganMaskConfig, {"threshold": 0.0}, "threshold"),
    (OrganMaskConfig, {"saliency_blocks": 0}, "saliency_blocks"),
    (PatchMaskConfig, {"rate": 1.0}, "rate"),
    (PatchMaskConfig, {"block": 0}, "block"),
    (LossWeights, {"patch": -1.0}, "patch"),
    (LossWeights, {"patch": 0.0, "seen": 0.0, "organ": 0.0}, "at least one term"),
    (AugmentConfig, {"noise": -0.1}, "noise"),
    (PretrainConfig, {"steps_per_round": 0}, "steps_per_round"),
    (PretrainConfig, {"learning_rate": math.nan}, "learning_rate"),
    (PretrainConfig, {"final_learning_rate": 1.0}, "final_learning_rate"),
    (PretrainConfig, {"clip_norm": 0.0}, "clip_norm"),
    (PretrainConfig, {"teacher_momentum": 1.0}, "teacher_momentum"),
    (FederationConfig, {"organ_exponent": 2.0}, "organ_exponent"),
    (FederationConfig, {"server_rate": 0.0}, "server_rate"),
    (FederationConfig, {"max_delta_norm": math.nan}, "max_delta_norm"),
    (FederationConfig, {"min_sites_per_group": 0}, "min_sites_per_group"),
    (Recipe, {"seed": -1}, "seed"),
    (Recipe, {"rounds": 0}, "rounds"),
    (Recipe, {"organs": {"Brain": OrganGrid()}}, "organ name 'Brain'"),
    (Recipe, {"organs": {"brain": OrganGrid(shape=[32, 32, 30])}}, r"organs\.brain\.shape"),
    (Recipe, {"organs": {"brain": OrganGrid(shape=[8, 8, 8])}}, "single patch"),
    (Recipe, {"prepare": PrepareConfig(margin_voxels=1)}, "shift_voxels"),
    (RunConfig, {"sites": 0}, "sites"),
    (RunConfig, {"threads": 0}, "threads"),
    (CohortConfig, {"missing_rate": 1.0}, "missing_rate"),
    (CohortConfig, {"train_share": 0.0}, "train_share"),
]


@pytest.mark.parametrize(("schema", "values", "word"), WRONG)
def test_what_cannot_be_is_refused_by_name(schema: Callable[..., Any], values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        schema(**values)


def test_defaults_are_allowed_and_not_shared() -> None:
    one, other = RunConfig(), RunConfig()
    one.organs["brain"] = OrganGrid()
    one.pretrain.steps_per_round = 3
    assert other.organs == {}
    assert other.pretrain.steps_per_round == PretrainConfig().steps_per_round


def test_total_steps_are_those_of_a_site_in_every_round() -> None:
    assert Recipe(rounds=4, pretrain=PretrainConfig(steps_per_round=7)).total_steps == 28
