"""Settings refuse what cannot be, always with a ConfigError that names the field."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from panfm.config import (
    AugmentConfig,
    CohortConfig,
    FederationConfig,
    LossWeights,
    MaskSchedule,
    ModelConfig,
    OrganAugmentConfig,
    OrganGrid,
    OrganMaskConfig,
    OrganMaskRule,
    ParticipationConfig,
    PatchMaskConfig,
    PixelConfig,
    PrepareConfig,
    PretrainConfig,
    PrototypeConfig,
    Recipe,
    RobustConfig,
    RunConfig,
    ServerStepConfig,
    Spacing,
)
from panfm.errors import ConfigError

_PATCH_12 = ModelConfig(patch=12)


def _native(shape: list[int], max_degree: int = 3) -> OrganGrid:
    return OrganGrid(shape=shape, spacing=Spacing.native, max_degree=max_degree)


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (OrganGrid, {"shape": [32, 32]}, "shape"),
    (OrganGrid, {"shape": [32, 32, 0]}, "shape"),
    (OrganGrid, {"spacing_mm": []}, "spacing_mm"),
    (OrganGrid, {"spacing_mm": [1.0, 1.0, -1.0]}, "spacing_mm"),
    (OrganGrid, {"max_degree": -1}, "max_degree"),
    (OrganGrid, {"max_degree": 60}, "max_degree"),
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
    (ModelConfig, {"prototypes": 1}, "prototypes must be 0 .none. or at least 2"),
    (ModelConfig, {"decoder_depth": -1}, "decoder_depth"),
    (PrototypeConfig, {"subject": -1.0}, "subject"),
    (PrototypeConfig, {"koleo": math.inf}, "koleo"),
    (PrototypeConfig, {"subject": 0.0, "patch": 0.0}, "subject or patch"),
    (PrototypeConfig, {"teacher_temperature": 0.0}, "teacher_temperature"),
    (PrototypeConfig, {"student_temperature": math.nan}, "student_temperature"),
    (PrototypeConfig, {"temperature_warmup": 1.1}, "temperature_warmup"),
    (PrototypeConfig, {"centre_momentum": -0.1}, "centre_momentum"),
    (PixelConfig, {"organ": -1.0}, "organ"),
    (PretrainConfig, {"batch_size": 1, "prototypes": PrototypeConfig(koleo=0.1)}, "koleo .* 2 or more, got 1"),
    (OrganMaskConfig, {"schedule": MaskSchedule.linear}, "schedule=linear needs start_rate or start_temperature"),
    (OrganMaskConfig, {"start_rate": 0.1}, "schedule=constant has no start; choose linear or cosine"),
    (OrganMaskConfig, {"schedule": MaskSchedule.cosine, "start_rate": 1.5}, "start_rate"),
    (OrganMaskConfig, {"schedule": MaskSchedule.cosine, "start_temperature": 0.0}, "start_temperature"),
    (
        OrganMaskConfig,
        {"schedule": MaskSchedule.linear, "start_rate": 0.1, "rule": OrganMaskRule.threshold},
        "rule=threshold knows of no rate, so start_rate would do nothing; leave it out, or choose lift or uniform",
    ),
    (
        OrganMaskConfig,
        {"schedule": MaskSchedule.linear, "start_temperature": 2.0, "rule": OrganMaskRule.uniform},
        "rule=uniform knows of no temperature",
    ),
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
    (AugmentConfig, {"rotation_deg": math.nan}, "rotation_deg"),
    (AugmentConfig, {"zoom": 1.0}, "zoom"),
    (AugmentConfig, {"flip": [0.5, 0.5]}, "flip"),
    (AugmentConfig, {"flip": [0.0, 0.0, 1.5]}, "flip"),
    (PretrainConfig, {"steps_per_round": 0}, "steps_per_round"),
    (PretrainConfig, {"learning_rate": math.nan}, "learning_rate"),
    (PretrainConfig, {"final_learning_rate": 1.0}, "final_learning_rate"),
    (PretrainConfig, {"clip_norm": 0.0}, "clip_norm"),
    (PretrainConfig, {"teacher_momentum": 1.0}, "teacher_momentum"),
    (PretrainConfig, {"proximal": -0.1}, "proximal"),
    (PretrainConfig, {"proximal": math.nan}, "proximal"),
    (FederationConfig, {"organ_exponent": 2.0}, "organ_exponent"),
    (ServerStepConfig, {"rate": 0.0}, "rate"),
    (ServerStepConfig, {"momentum": 1.0}, "momentum"),
    (ServerStepConfig, {"second_momentum": -0.1}, "second_momentum"),
    (ServerStepConfig, {"adaptivity": 0.0}, "adaptivity"),
    (RobustConfig, {"trim": 0.5}, "trim"),
    (RobustConfig, {"max_norm": -1.0}, "max_norm"),
    (RobustConfig, {"past_factor": math.nan}, "past_factor"),
    (RobustConfig, {"past_rounds": 0}, "past_rounds"),
    (FederationConfig, {"max_delta_norm": math.nan}, "max_delta_norm"),
    (FederationConfig, {"min_sites_per_group": 0}, "min_sites_per_group"),
    (ParticipationConfig, {"sites_per_round": -1}, "sites_per_round"),
    (ParticipationConfig, {"window": -1}, "window"),
    (ParticipationConfig, {"deadline_factor": 0.5}, "deadline_factor must be 0 or at least 1"),
    (ParticipationConfig, {"deadline_least_s": 0.0}, "deadline_least_s"),
    (ParticipationConfig, {"coverage": {"brain": -1}}, r"coverage\.brain"),
    (FederationConfig, {"min_sites": 3, "participation": ParticipationConfig(sites_per_round=2)}, "sites_per_round 2"),
    (
        Recipe,
        {"federation": FederationConfig(participation=ParticipationConfig(coverage={"livre": 1}))},
        "coverage: livre is no organ",
    ),
    (Recipe, {"seed": -1}, "seed"),
    (Recipe, {"rounds": 0}, "rounds"),
    (Recipe, {"organs": {"Brain": OrganGrid()}}, "organ name 'Brain'"),
    (Recipe, {"organs": {"brain": OrganGrid(shape=[32, 32, 30])}}, r"organs\.brain\.shape"),
    (Recipe, {"organs": {"brain": OrganGrid(shape=[8, 8, 8])}}, "single patch"),
    (
        Recipe,
        {"organs": {"brain": _native([24, 24, 24])}, "model": _PATCH_12},
        "spacing=native needs a patch that halves",
    ),
    (
        Recipe,
        {"organs": {"brain": _native([32, 32, 32], max_degree=4)}},
        "model.patch 8 does not; choose a power of two",
    ),
    (Recipe, {"organs": {"brain": _native([32, 32, 30])}}, r"organs\.brain\.shape"),
    (Recipe, {"prepare": PrepareConfig(margin_voxels=1)}, "shift_voxels"),
    (RunConfig, {"sites": 0}, "sites"),
    (RunConfig, {"threads": 0}, "threads"),
    (CohortConfig, {"missing_rate": 1.0}, "missing_rate"),
    (CohortConfig, {"train_share": 0.0}, "train_share"),
]


def _augmented(**augment: Any) -> Recipe:
    organs = {organ: OrganGrid() for organ in ("brain", "liver")}
    return Recipe(organs=organs, pretrain=PretrainConfig(augment=AugmentConfig(**augment)))


def test_an_organ_with_a_side_is_never_mirrored_left_to_right() -> None:
    mirrored = [0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match=r"the left of the liver .*augment\.organs\.liver\.flip to \[0, \.\.\.\]"):
        _augmented(flip=mirrored)
    with pytest.raises(ConfigError, match="the left of the liver"):
        _augmented(organs={"liver": OrganAugmentConfig(flip=mirrored)})
    with pytest.raises(ConfigError, match="the left of the prostate"):  # nobody told panfm about it
        Recipe(organs={"prostate": OrganGrid()}, pretrain=PretrainConfig(augment=AugmentConfig(flip=mirrored)))
    _augmented(organs={"brain": OrganAugmentConfig(flip=mirrored)})
    _augmented(flip=mirrored, organs={"liver": OrganAugmentConfig(flip=[0.0, 0.5, 0.0])})


def test_an_organs_own_augmentation_is_checked_and_fills_the_rest_from_all_organs() -> None:
    augment = AugmentConfig(gamma=0.3, noise=0.1, organs={"liver": OrganAugmentConfig(noise=0.0, blur_mm=2.0)})
    assert augment.of("liver") == AugmentConfig(gamma=0.3, noise=0.0, blur_mm=2.0)
    assert augment.of("brain") == AugmentConfig(gamma=0.3, noise=0.1)
    with pytest.raises(ConfigError, match="zoom"):
        _augmented(organs={"liver": OrganAugmentConfig(zoom=-0.1)})
    with pytest.raises(ConfigError, match=r"augment\.organs: livre is no organ"):
        _augmented(organs={"livre": OrganAugmentConfig()})


def test_an_organ_can_say_all_that_the_study_says_of_augmentation() -> None:
    own, all_of_them = ({f.name for f in fields(schema)} for schema in (OrganAugmentConfig, AugmentConfig))
    assert all_of_them - own == {"shift_voxels", "organs"}
    assert own <= all_of_them


@pytest.mark.parametrize(("schema", "values", "word"), WRONG)
def test_what_cannot_be_is_refused_by_name(schema: Callable[..., Any], values: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        schema(**values)


def test_a_native_organ_needs_a_patch_that_its_degrees_halve() -> None:
    Recipe(organs={"brain": _native([24, 24, 24], max_degree=2)}, model=_PATCH_12)
    Recipe(organs={"brain": OrganGrid(shape=[24, 24, 24])}, model=_PATCH_12)  # resampled: any patch will do


def test_defaults_are_allowed_and_not_shared() -> None:
    one, other = RunConfig(), RunConfig()
    one.organs["brain"] = OrganGrid()
    one.pretrain.steps_per_round = 3
    assert other.organs == {}
    assert other.pretrain.steps_per_round == PretrainConfig().steps_per_round


def test_total_steps_are_those_of_a_site_in_every_round() -> None:
    assert Recipe(rounds=4, pretrain=PretrainConfig(steps_per_round=7)).total_steps == 28
