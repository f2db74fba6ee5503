"""Rank and spread where the answer is known, and who counts as collapsed."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import Objective, Recipe
from panfm.data.dataset import Batch
from panfm.models.build import initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain.collapse import (
    DIVERGED_ABOVE,
    RANK_FLOOR,
    SPREAD_FLOOR,
    collapse_reason,
    effective_rank,
    spread,
)
from panfm.pretrain.feature_loss import feature_loss, normalised
from panfm.pretrain.pixel_loss import pixel_loss, pixel_targets
from panfm.protocol import TrainMetrics

HEALTHY = TrainMetrics(
    loss=0.4,
    loss_patch=0.4,
    loss_organ=None,
    collapse_loss=0.5,
    gradient_norm=1.0,
    share={},
    lift={},
    masked_rate={},
    share_entropy=None,
    effective_rank={"brain": 20.0, "heart": 30.0},
    spread={"brain": 0.5, "heart": 0.6},
    seconds=1.0,
)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_rank_of_equal_directions_is_their_number(rank: int) -> None:
    directions = torch.eye(8)[:rank]
    assert effective_rank(7 + torch.cat((directions, -directions))) == pytest.approx(rank, rel=1e-5)


def test_rank_of_singular_values_3_to_1() -> None:
    x, y = torch.eye(5)[:2]
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.stack((3 * x, -3 * x, y, -y))) == pytest.approx(expected, rel=1e-5)


def test_what_does_not_vary_has_rank_1_and_spread_0() -> None:
    equal = torch.full((10, 4), 0.5)
    assert (effective_rank(equal), spread(equal)) == (1.0, 0.0)
    assert effective_rank(torch.randn(1, 4, generator=torch.Generator().manual_seed(0))) == 1.0


def test_spread_is_1_when_directions_cancel_and_root_half_for_two_at_right_angles() -> None:
    x, y = 3 * torch.eye(6)[:2]
    assert spread(torch.stack((x, -x, 2 * y, -y))) == pytest.approx(1.0)
    assert spread(torch.stack((x, y))) == pytest.approx(math.sqrt(0.5))


@given(seed=st.integers(0, 99), rows=st.integers(2, 20))
def test_spread_is_what_the_mean_direction_lacks_to_1(seed: int, rows: int) -> None:
    points = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))
    mean = (points / points.norm(dim=1, keepdim=True)).mean(0)
    assert spread(points) == pytest.approx(math.sqrt(1 - float(mean.square().sum())), abs=1e-4)


@given(seed=st.integers(0, 99), rows=st.integers(2, 20))
def test_rank_is_what_the_eigenvalues_of_the_covariance_say(seed: int, rows: int) -> None:
    points = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))
    covariance = np.cov(points.double().numpy(), rowvar=False)
    values = np.sqrt(np.linalg.eigvalsh(covariance).clip(min=1e-14))
    shares = values / values.sum()
    assert effective_rank(points) == pytest.approx(math.exp(-float((shares * np.log(shares)).sum())), rel=1e-4)


def test_who_counts_as_collapsed() -> None:
    assert collapse_reason(HEALTHY) is None
    low_spread, low_rank = SPREAD_FLOOR / 2, (1 + RANK_FLOOR) / 2
    flat = replace(HEALTHY, spread={"brain": low_spread, "heart": low_spread})
    assert "spread 0.025 in every organ" in (collapse_reason(flat) or "")
    line = replace(HEALTHY, effective_rank={"brain": low_rank, "heart": low_rank})
    assert "effective rank 1.25" in (collapse_reason(line) or "")
    # One organ that varies speaks for the site, and a site that measured nothing is not accused.
    assert collapse_reason(replace(HEALTHY, spread={"brain": low_spread, "heart": 0.5})) is None
    assert collapse_reason(replace(HEALTHY, effective_rank={"brain": low_rank, "heart": 20.0})) is None
    assert collapse_reason(replace(HEALTHY, spread={}, effective_rank={})) is None


def _prototypes(patch: float, subject: float) -> str:
    """What is said of prototypes with these losses, out of 1,024."""
    told = replace(HEALTHY, loss_patch=patch, loss_organ=subject, collapse_loss=math.log(1024))
    return collapse_reason(told, Objective.prototypes) or ""


def test_prototypes_that_are_uniform_or_all_the_same_are_named() -> None:
    """By either term alone; numbers may have been rounded to four digits on their way (`panfm.site.egress`)."""
    uniform = math.log(1024)
    assert _prototypes(0.6 * uniform, 0.7 * uniform) == ""
    assert _prototypes(1.02 * uniform, 0.98 * uniform) == ""  # a beginner is near ln K, but does not stand there
    assert "loss of hidden patches stands at ln K = 6.9315" in _prototypes(6.932, 3.0)
    assert "loss of subject tokens stands at ln K = 6.9315" in _prototypes(3.0, 6.931)
    assert "loss of hidden patches is 0.0100" in _prototypes(0.01, 3.0)
    assert "same prototype" in _prototypes(3.0, 0.02)
    # What is a collapse of prototypes is a good loss of features or pixels.
    for objective in (Objective.features, Objective.pixels):
        assert collapse_reason(replace(HEALTHY, loss_patch=0.001, collapse_loss=1.0), objective) is None


@pytest.mark.parametrize("objective", [Objective.pixels, Objective.features])
def test_a_loss_far_above_that_of_saying_nothing_has_diverged(objective: Objective) -> None:
    """Whatever became of the features: their spread may look healthy, or flat, or the round may have had none to measure."""
    flat, unmeasured = replace(HEALTHY, spread={"brain": 0.01}), replace(HEALTHY, spread={}, effective_rank={})
    for metrics in (HEALTHY, flat, unmeasured):
        reason = collapse_reason(replace(metrics, loss_patch=5e6), objective) or ""
        assert reason.startswith(
            "its training diverged: the loss of hidden patches is 5e+06, and that of predicting 0 at most 1"
        )
        assert "lower pretrain.learning_rate" in reason
    assert collapse_reason(replace(HEALTHY, loss_patch=DIVERGED_ABOVE * 1.001), objective) is not None
    # The bound is absolute, so a constant guess that is all but right (targets alike) makes no learner look diverged.
    assert collapse_reason(replace(HEALTHY, loss_patch=3.0, collapse_loss=1e-3), objective) is None
    # A cross-entropy of cosines is bounded by ln K + 2 / temperature, far above 10.
    assert collapse_reason(replace(HEALTHY, loss_patch=12.0, collapse_loss=10.0), Objective.prototypes) is None


def test_predicting_nothing_costs_at_most_one(make_recipe: Callable[..., Recipe]) -> None:
    """What the bound stands on: targets of both objectives have variance 1, even those of voxels that do not vary."""
    noise = torch.Generator().manual_seed(0)
    volumes = torch.cat((torch.randn(2, 8, 8, 8, generator=noise) ** 3, torch.full((1, 8, 8, 8), 7.0)))
    voxels = pixel_targets(volumes, make_recipe().model.patch)
    assert float(pixel_loss(torch.zeros_like(voxels), voxels).max()) <= 1 + 1e-5
    features = normalised(40 * torch.randn(50, 24, generator=noise) ** 5)
    assert float(feature_loss(torch.zeros_like(features), features).max()) <= 1


def test_pixels_that_are_flat_are_told_beside_the_loss_of_a_constant_guess() -> None:
    flat = replace(HEALTHY, spread={"brain": 0.01}, loss_patch=1.0, collapse_loss=0.99)
    reason = collapse_reason(flat, Objective.pixels) or ""
    assert "spread 0.010" in reason
    assert "its loss is 1.000, that of guessing each organ's mean patch 0.990" in reason
    assert "guessing" not in (collapse_reason(flat) or "")


def test_an_untrained_model_is_far_from_the_floors(
    make_recipe: Callable[..., Recipe], make_model: Callable[..., PanOrganModel], make_batch: Callable[..., Batch]
) -> None:
    """Golden, measured on version 0.1.0: seed 0, volumes of noise, width 24. What matters is the distance to the floors."""
    recipe, model = make_recipe(), make_model(("brain",))
    load_parameters(model, initial_parameters(recipe.model, {"brain": recipe.organs["brain"]}, 0))
    batch = make_batch({f"s{number}": ["brain"] for number in range(16)})
    with torch.no_grad():
        tokens = model(batch.volumes, batch.rows, 16).patches["brain"].flatten(0, 1)
    assert spread(tokens) == pytest.approx(0.971, abs=0.005)
    assert effective_rank(tokens) == pytest.approx(20.8, abs=0.2)
