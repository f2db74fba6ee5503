"""What a round with privacy trains, what it costs, and what a recipe cannot have with it: all that follows from public settings.

Site, gate and coordinator ask this of a recipe without building a model; so it knows nothing of Opacus, whose import takes
seconds.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Sequence

from panfm.config import PrivacyConfig, PrivacyMode, Recipe
from panfm.config.recipe import check_with_privacy
from panfm.errors import ConfigError
from panfm.privacy.accounting import NoisySteps

_ADAPTED = ("heads.patch_predictor.", "heads.organ_predictor.")


def trained_names(names: Iterable[str], mode: PrivacyMode, recipe: Recipe, organs: Sequence[str]) -> list[str]:
    """Which parameters are trained, and so noised, in each step: by what is public alone, never by who is in a sample.

    What no subject of a site with these organs could ever move is not trained: noise would be all that it gets.

    Args:
        organs: those that the site declares, whether or not a subject has them all.
    """
    weights = recipe.pretrain.loss
    idle = [] if weights.patch > 0 or weights.seen > 0 else ["heads.patch_predictor."]
    if weights.organ == 0 or len(organs) < 2:
        idle += ["heads.organ_predictor.", *(f"organs.{organ}.query" for organ in organs)]
    return sorted(name for name in names if _is_in(name, mode) and not name.startswith(tuple(idle)))


def _is_in(name: str, mode: PrivacyMode) -> bool:
    return mode is PrivacyMode.dp_full or name.startswith(_ADAPTED) or ".adapters." in name


def round_cost(recipe: Recipe) -> NoisySteps:
    """What a round by this recipe is charged, whatever comes of it."""
    return NoisySteps(
        noise_multiplier=recipe.privacy.noise_multiplier,
        sampling_rate=recipe.privacy.sampling_rate,
        steps=recipe.pretrain.steps_per_round,
    )


def refuse_recipe(recipe: Recipe, privacy: PrivacyConfig, organs: Sequence[str]) -> None:
    """Raises: ConfigError when the recipe asks for what cannot be had with privacy."""
    if privacy.mode is PrivacyMode.none:
        raise ConfigError("privacy.mode is none; training with privacy needs dp_adapters or dp_full")
    check_with_privacy(recipe, organs)
