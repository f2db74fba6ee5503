"""Attention shares, and what noise in place of one organ does to them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.evaluation.organ_attention import evenness_of, organ_attention
from panfm.models.build import initial_parameters

ORGANS = ("brain", "liver", "spleen")


@pytest.fixture
def dataset(recipe: Recipe, make_site: Callable[..., Path]) -> SubjectDataset:
    people = {f"sub-{n:02d}": ORGANS for n in range(6)}
    return SubjectDataset(PreparedStore.open(make_site("a", people) / "store"), ORGANS, recipe.organs)


def _parameters(recipe: Recipe) -> dict[str, Tensor]:
    """A model whose attention follows what it sees: larger patch kernels, keys and queries than at the start of training."""
    values = initial_parameters(recipe.model, recipe.organs, seed=1)
    return {name: 3 * value if "qkv" in name or "patch_embed" in name else value for name, value in values.items()}


def test_shares_sum_to_one_and_noise_changes_them(recipe: Recipe, dataset: SubjectDataset) -> None:
    found = organ_attention(_parameters(recipe), recipe, dataset, range(6), ORGANS, seed=4)
    assert found.share.shape == found.lift.shape == found.share_of_noise.shape == (6, 3)
    assert found.share.sum(1) == pytest.approx(np.ones(6))
    assert found.lift == pytest.approx(3 * found.share), "the organs have equally many tokens"
    assert (np.abs(found.share - found.share_of_noise) > 1e-6).all()


def test_a_subjects_noise_is_its_own(recipe: Recipe, dataset: SubjectDataset) -> None:
    parameters = _parameters(recipe)
    together = organ_attention(parameters, recipe, dataset, range(6), ORGANS, seed=4)
    alone = organ_attention(parameters, recipe, dataset, [4], ORGANS, seed=4)
    other = organ_attention(parameters, recipe, dataset, [4], ORGANS, seed=5)
    assert alone.share_of_noise[0] == pytest.approx(together.share_of_noise[4], abs=1e-6)
    assert np.abs(other.share_of_noise - alone.share_of_noise).max() > 1e-6
    assert other.share == pytest.approx(alone.share)


def test_a_model_that_does_not_read_an_organ_keeps_its_attention(recipe: Recipe, dataset: SubjectDataset) -> None:
    parameters = _parameters(recipe)
    blind = {n: torch.zeros_like(v) if n.startswith("organs.liver.patch_embed") else v for n, v in parameters.items()}
    found = organ_attention(blind, recipe, dataset, range(6), ORGANS, seed=4)
    drop = np.abs(found.share - found.share_of_noise).max(0)
    assert drop[1] < 1e-6 < drop[0]


def test_evenness_is_entropy_over_its_maximum() -> None:
    found = evenness_of(np.array([[0.5, 0.5, 0.0, 0.0], [0.25] * 4, [1.0, 0, 0, 0]]))
    assert found == pytest.approx([0.5, 1.0, 0.0])
