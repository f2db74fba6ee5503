"""The trunk hands each organ's tokens to that organ's adapter, block by block, and averages attention over the last blocks."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panfm.models.backbone import Trunk
from panfm.models.layout import Layout, pack

WIDTH, DEPTH = 12, 3


class _Add(nn.Module):
    """Adds a number of its own: what passed through it can be read from the sum."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.number


@pytest.fixture
def trunk() -> Trunk:
    trunk, generator = Trunk(WIDTH, DEPTH, heads=2, hidden=16), torch.Generator().manual_seed(0)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return trunk


@pytest.fixture
def layout() -> Layout:
    return pack(2, {"brain": torch.tensor([0, 1]), "heart": torch.tensor([1])}, {"brain": 3, "heart": 2})


def _unturned(layout: Layout) -> tuple[Tensor, Tensor]:
    return torch.ones(layout.num_tokens, 3), torch.zeros(layout.num_tokens, 3)


def test_each_token_passes_its_own_organs_adapters_in_order(trunk: Trunk, layout: Layout) -> None:
    with torch.no_grad():  # blocks that add nothing
        for block in trunk.blocks:
            for name, parameter in block.named_parameters():
                parameter.mul_(0 if name.startswith(("attention.out", "mlp_out")) else 1)
    passed: list[tuple[float, int]] = []

    class Recorded(_Add):
        def forward(self, tokens: Tensor) -> Tensor:
            passed.append((self.number, len(tokens)))
            return super().forward(tokens) * 2

    adapters = {"brain": [Recorded(n) for n in (1.0, 2.0, 3.0)], "heart": [Recorded(n) for n in (10.0, 20.0, 30.0)]}
    tokens = torch.randn(layout.num_tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    out, saliency = trunk(tokens, layout, _unturned(layout), adapters)
    assert saliency is None
    assert passed == [(1.0, 8), (10.0, 3), (2.0, 8), (20.0, 3), (3.0, 8), (30.0, 3)]
    expected = tokens.clone()
    for organ in adapters:
        for adapter in adapters[organ]:
            expected[layout.spans[organ]] = (expected[layout.spans[organ]] + adapter.number) * 2
    assert torch.allclose(out, trunk.norm(expected), atol=1e-5)


def test_saliency_is_the_mean_over_the_last_blocks(trunk: Trunk, layout: Layout) -> None:
    adapters = {organ: [_Add(0.0)] * DEPTH for organ in layout.spans}
    tokens = torch.randn(layout.num_tokens, WIDTH, generator=torch.Generator().manual_seed(1))
    rows: list[Tensor] = []
    hooks = [
        block.get_submodule("attention").register_forward_hook(lambda module, inputs, output: rows.append(output[1]))
        for block in trunk.blocks
    ]
    trunk(tokens, layout, _unturned(layout), adapters, DEPTH)
    for hook in hooks:
        hook.remove()
    assert len(rows) == DEPTH
    for last in (1, 2, 3, 9):
        _, saliency = trunk(tokens, layout, _unturned(layout), adapters, last)
        assert torch.allclose(saliency, torch.stack(rows[-last:]).mean(0), atol=1e-6)
