"""The small per-organ modules: a bottleneck adapter after every block of the shared trunk.

It is averaged parameter by parameter, which for a bottleneck is as exact as for any layer; a factored update (LoRA) would
not be, since the mean of products is not the product of means. The last map starts at zero, so a fresh adapter changes
nothing. Source: Houlsby et al. 2019, arXiv:1902.00751.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Adapter(nn.Module):
    """x + up(gelu(down(norm(x)))), on [..., E]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = tokens + self.up(functional.gelu(self.down(self.norm(tokens))))
        return out
