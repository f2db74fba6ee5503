"""The shared trunk: pre-norm transformer blocks and the subject token.

Between its blocks the trunk hands each organ's tokens to that organ's adapter, which it is given and does not own.
Legend: N packed tokens, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.attention import SubjectAttention
from panfm.models.layout import Layout
from panfm.models.recomputing import recomputed


class Block(nn.Module):
    """Pre-norm attention and MLP; LayerNorm with bias."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SubjectAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(
        self, tokens: Tensor, layout: Layout, rotary: tuple[Tensor, Tensor], with_saliency: bool
    ) -> tuple[Tensor, Tensor | None]:
        mixed, saliency = self.attention(self.norm1(tokens), layout, rotary, with_saliency)
        tokens = tokens + mixed
        return tokens + self.mlp_out(functional.gelu(self.mlp_in(self.norm2(tokens)))), saliency


class Trunk(nn.Module):
    """The group `trunk`."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, checkpointing: bool = False) -> None:
        super().__init__()
        self._checkpointing = checkpointing
        self.subject_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens: Tensor,
        layout: Layout,
        rotary: tuple[Tensor, Tensor],
        adapters: Mapping[str, Sequence[nn.Module]],
        saliency_blocks: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Run all blocks.

        Args:
            tokens: [N, E], packed.
            adapters: organ -> one module per block.
            saliency_blocks: number of last blocks over which the subject token's attention is averaged; 0 for none.
        Returns: normalised tokens [N, E], and the averaged attention fp32 [N] or None.
        """
        rows: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            own = {organ: modules[number] for organ, modules in adapters.items()}
            with_saliency = number >= len(self.blocks) - saliency_blocks
            tokens, saliency = recomputed(
                self._checkpointing, _through, block, own, tokens, layout, rotary, with_saliency
            )
            rows += [saliency] if saliency is not None else []
        return self.norm(tokens), torch.stack(rows).mean(0) if rows else None


def _through(
    block: nn.Module,
    adapters: Mapping[str, nn.Module],
    tokens: Tensor,
    layout: Layout,
    rotary: tuple[Tensor, Tensor],
    with_saliency: bool,
) -> tuple[Tensor, Tensor | None]:
    """One block and the adapters after it."""
    tokens, saliency = block(tokens, layout, rotary, with_saliency)
    return _adapt(tokens, layout, adapters), saliency


def _adapt(tokens: Tensor, layout: Layout, adapters: Mapping[str, nn.Module]) -> Tensor:
    blocks = [tokens[: layout.num_subjects]]
    blocks += [adapters[organ](tokens[span]) for organ, span in layout.spans.items()]
    return torch.cat(blocks)
