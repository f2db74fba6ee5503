"""Everything the sites of a study agree on, in one value that travels inside each signed task."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from panfm.config.federation import FederationConfig
from panfm.config.grids import OrganGrid, PrepareConfig, Spacing
from panfm.config.model import ModelConfig
from panfm.config.objective import check_centre, check_heads, check_private_objective
from panfm.config.pretrain import PretrainConfig, Sampler, check_constant, check_plain_step
from panfm.config.privacy import PrivacyConfig
from panfm.config.require import require
from panfm.organs import WITHOUT_SIDE, check_organ_names


@dataclass(slots=True, kw_only=True)
class Recipe:
    """Everything the sites of a study agree on; travels inside each signed task."""

    recipe: str = "demo"
    """Name of the recipe, for people."""
    seed: int = 0
    """Root of every random stream that privacy does not keep secret."""
    rounds: int = 5
    """Rounds of the run."""
    threads: int = 2
    """Intra-op threads of torch; part of the recipe because sums depend on it."""
    organs: dict[str, OrganGrid] = field(default_factory=dict)
    """The organ vocabulary of the study, in order, with the grid of each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, f"seed must be in 0 to 2**63, got {self.seed}")
        require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")
        require(self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        check_organ_names(self.organs)
        for organ, grid in self.organs.items():
            require(
                all(side % self.model.patch == 0 for side in grid.shape),
                f"organs.{organ}.shape {list(grid.shape)} must be multiples of model.patch {self.model.patch}",
            )
            require(
                max(grid.shape) > self.model.patch,
                f"organs.{organ}.shape {list(grid.shape)} holds a single patch of model.patch {self.model.patch}; "
                "a patch is predicted from others, so there must be two or more",
            )
            require(
                grid.spacing is not Spacing.native or self.model.patch % 2**grid.max_degree == 0,
                f"organs.{organ}.spacing=native needs a patch that halves organs.{organ}.max_degree = {grid.max_degree} times, "
                f"and model.patch {self.model.patch} does not; choose a power of two such as 8 or 16, or a smaller max_degree",
            )
        shift, margin = self.pretrain.augment.shift_voxels, self.prepare.margin_voxels
        require(shift <= margin, f"pretrain.augment.shift_voxels {shift} must not pass prepare.margin_voxels {margin}")
        self._check_augment()
        check_heads(self.pretrain.objective, self.model)
        check_centre(self.pretrain.objective, self.federation.server)
        if self.privacy.is_on:
            check_with_privacy(self, self.organs)
        unknown = sorted(self.federation.participation.coverage.keys() - self.organs.keys())
        require(
            not unknown,
            f"federation.participation.coverage: {', '.join(unknown)} is no organ of `organs`; correct the name",
        )

    def _check_augment(self) -> None:
        """Each organ's own settings, and that no organ with a side is mirrored left to right."""
        augment = self.pretrain.augment
        unknown = sorted(augment.organs.keys() - self.organs.keys())
        require(not unknown, f"pretrain.augment.organs: {', '.join(unknown)} is no organ of `organs`; correct the name")
        for organ in self.organs:
            require(
                augment.of(organ).flip[0] == 0 or organ in WITHOUT_SIDE,
                f"pretrain.augment: the left of the {organ} is not like its right, so its mirror image is nobody's; set "
                f"pretrain.augment.organs.{organ}.flip to [0, ...]. Without a side are {' and '.join(WITHOUT_SIDE)}",
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a site that takes part in every round."""
        return self.rounds * self.pretrain.steps_per_round


def check_with_privacy(recipe: Recipe, organs: Iterable[str]) -> None:
    """That what a recipe asks for can be had with privacy.

    Args:
        organs: of the recipe, those that are trained.
    Raises: ConfigError, else.
    """
    check_private_objective(recipe.pretrain.objective)
    check_constant(recipe.pretrain.organ_mask)
    check_plain_step(recipe.pretrain)
    for organ in organs:
        require(
            recipe.organs[organ].spacing is not Spacing.native,
            f"organs.{organ}.spacing=native cannot be had with privacy, which needs equally many voxels and tokens for "
            "every subject; set it to resample and prepare the store again",
        )
    require(
        recipe.pretrain.sampler is Sampler.subjects,
        f"pretrain.sampler={recipe.pretrain.sampler.value} draws subjects by the organs that others have; with privacy each "
        "is drawn by a coin of its own: set it to subjects",
    )
    require(
        not recipe.pretrain.keep_moments,
        "pretrain.keep_moments cannot be had with privacy, where each round's optimiser starts afresh; set it to false",
    )
