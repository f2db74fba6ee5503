"""A fresh adapter changes nothing, learns from its first step on, and computes what its docstring says."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch
from torch import Tensor

from panfm.config import ModelConfig, OrganGrid
from panfm.models.adapters import Adapter
from panfm.models.build import initial_parameters, load_parameters


def _adapter(config: ModelConfig, grids: dict[str, OrganGrid]) -> Adapter:
    prefix = "organs.brain.adapters.0."
    start = {n: p for n, p in initial_parameters(config, grids, 0).items() if n.startswith(prefix)}
    adapter = Adapter(config.width, config.adapter_width)
    load_parameters(adapter, {name.removeprefix(prefix): value for name, value in start.items()})
    return adapter


def _tokens(width: int) -> Tensor:
    return torch.randn(7, width, generator=torch.Generator().manual_seed(0))


def test_a_fresh_adapter_is_the_identity_and_can_leave_it(config: ModelConfig, grids: dict[str, OrganGrid]) -> None:
    adapter, tokens = _adapter(config, grids), _tokens(config.width)
    out = adapter(tokens)
    assert torch.equal(out, tokens)
    torch.autograd.backward(out.square().sum())
    assert adapter.up.weight.grad is not None
    assert float(adapter.up.weight.grad.abs().min()) > 0


def test_formula_one_token_at_a_time(config: ModelConfig, grids: dict[str, OrganGrid]) -> None:
    adapter, tokens = _adapter(config, grids), _tokens(config.width)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for token, out in zip(tokens, adapter(tokens), strict=True):
            centred = token - token.mean()
            normed = centred / (centred.square().mean() + 1e-5).sqrt() * adapter.norm.weight + adapter.norm.bias
            inner = adapter.down.weight @ normed + adapter.down.bias
            gelu = torch.tensor([x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in inner.tolist()])
            assert torch.allclose(out, token + adapter.up.weight @ gelu + adapter.up.bias, atol=1e-5)
