"""FedProx against autograd on its own formula, and what it does to a round."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from panfm import update
from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.models.build import initial_parameters
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.pretrain.proximal import anchor_of, pull_towards

MakeRecipe = Callable[..., Recipe]
MakeDataset = Callable[[dict[str, Sequence[str]]], SubjectDataset]
PRESENCE: dict[str, Sequence[str]] = {"a": ["brain", "heart"], "b": ["brain"], "c": ["heart"], "d": ["brain", "heart"]}


@pytest.mark.parametrize("mu", [0.1, 3.0])
def test_the_pull_is_the_gradient_of_the_papers_term(mu: float) -> None:
    draws = torch.Generator().manual_seed(0)
    model, twin = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    anchor = anchor_of(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    twin.load_state_dict(model.state_dict())
    inputs = torch.randn(5, 3, generator=draws, dtype=torch.float64)

    model(inputs).square().mean().backward()
    pull_towards(model, anchor, mu)
    term = sum((p - start).square().sum() for p, start in zip(twin.parameters(), anchor, strict=True))
    (twin(inputs).square().mean() + mu / 2 * term).backward()

    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_a_parameter_without_a_gradient_gets_none() -> None:
    model = nn.Linear(2, 1)
    pull_towards(model, anchor_of(model), 1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def _trained(make_recipe: MakeRecipe, make_dataset: MakeDataset, proximal: float) -> TrainedRound:
    recipe, dataset = make_recipe(steps_per_round=12, proximal=proximal), make_dataset(PRESENCE)
    start = initial_parameters(recipe.model, {organ: recipe.organs[organ] for organ in dataset.organs}, recipe.seed)
    return train_round(start, start, dataset, recipe, site="s", round_number=1)


def test_a_stronger_pull_keeps_a_site_nearer(make_recipe: MakeRecipe, make_dataset: MakeDataset) -> None:
    """Seen: L2 norms of 1.15, 0.95 and 0.17 for mu of 0, 0.1 and 10."""
    far, near, nearest = (_trained(make_recipe, make_dataset, mu) for mu in (0.0, 0.1, 10.0))
    lengths = [update.norm(trained.deltas) for trained in (far, near, nearest)]
    assert lengths[0] > 1.1 * lengths[1] > 3 * lengths[2]
    assert far.deltas.keys() == nearest.deltas.keys()
