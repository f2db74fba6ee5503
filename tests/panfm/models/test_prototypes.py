"""The prototype head gives cosines, centres are parameters without a gradient, and a model has the head only when it asks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import replace

import torch

from panfm.config import ModelConfig, OrganGrid
from panfm.groups import HEADS, group_of
from panfm.models.build import build_model, initial_parameters, load_parameters, parameter_shapes
from panfm.models.prototypes import PrototypeHead

Grids = dict[str, OrganGrid]
K = 12


def _head(config: ModelConfig, grids: Grids) -> PrototypeHead:
    asked = replace(config, prototypes=K)
    model = build_model(asked, grids)
    load_parameters(model, initial_parameters(asked, grids, 0))
    assert model.heads.prototypes is not None
    return model.heads.prototypes


def test_logits_by_the_formula(config: ModelConfig, grids: Grids) -> None:
    head = _head(config, grids)
    tokens = 3 * torch.randn(2, 5, config.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = head(tokens)
        for token, logits in zip(tokens.reshape(10, -1).double(), found.reshape(10, -1), strict=True):
            x = token
            for layer in (head.first, head.second):
                x = layer.weight.double() @ x + layer.bias.double()
                x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
            x = head.third.weight.double() @ x + head.third.bias.double()
            expected = [float(x @ p / (x.norm() * p.norm())) for p in head.weight.double()]
            assert torch.allclose(logits.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-5)
    assert float(found.abs().max()) <= 1 + 1e-5


def test_the_length_of_a_prototype_means_nothing(config: ModelConfig, grids: Grids) -> None:
    """Weight normalisation without a gain: no prototype can win by growing."""
    head, tokens = _head(config, grids), torch.randn(4, config.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = head(tokens)
        head.weight[3] *= 100
        assert torch.allclose(head(tokens), before, atol=1e-6)


def test_centres_start_at_zero_travel_with_the_heads_and_get_no_gradient(config: ModelConfig, grids: Grids) -> None:
    asked = replace(config, prototypes=K)
    new = parameter_shapes(asked, grids).keys() - parameter_shapes(config, grids).keys()
    assert {group_of(name) for name in new} == {HEADS}
    centres = {f"heads.prototypes.{which}_centre" for which in ("subject", "patch")}
    start, model = initial_parameters(asked, grids, 0), build_model(asked, grids)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == centres < new
    assert all(start[name].shape == (K,) and not start[name].any() for name in centres)
    assert all(start[name].any() for name in new - centres if name.endswith("weight"))
    assert list(model.buffers()) == []


def test_without_being_asked_for_a_model_is_what_it_was(config: ModelConfig, grids: Grids) -> None:
    assert (config.prototypes, config.decoder_depth) == (0, 0)
    model = build_model(config, grids)
    assert (model.heads.prototypes, model.heads.decoder) == (None, None)
    with_head, without = (initial_parameters(replace(config, prototypes=k), grids, 0) for k in (K, 0))
    assert all(torch.equal(with_head[name], value) for name, value in without.items())
