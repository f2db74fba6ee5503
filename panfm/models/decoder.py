"""The light decoder of pixel reconstruction: what an encoder made of visible patches, to the voxels of all of them.

It is thrown away after pre-training. Where a patch was hidden a mask token stands, with its organ's embedding and its place;
subject and organ tokens are among what it reads, so that they are trained to hold what the hidden patches need.
Source: He et al. 2022 (MAE), arXiv:2111.06377. Deviation: as wide as the trunk, whose blocks and positions it shares in kind.
Legend: n_o scans of organ o, T_o patches, V_o visible ones, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn

from panfm.models.backbone import Block
from panfm.models.layout import Layout
from panfm.models.recomputing import recomputed


class Decoder(nn.Module):
    """Blocks of the trunk's kind and a map to the voxels of a patch."""

    def __init__(
        self, width: int, depth: int, heads: int, hidden: int, voxels: int, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self._checkpointing = checkpointing
        self.mask_token = nn.Parameter(torch.empty(width))
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.voxels = nn.Linear(width, voxels)

    def placed(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Visible patches [n, V, E] in their places among mask tokens, by bool [n, T]; [n, T, E]."""
        tokens = self.mask_token.expand(*hidden.shape, -1).clone()
        tokens[~hidden] = visible.flatten(0, 1).to(tokens.dtype)
        return tokens

    def forward(self, tokens: Tensor, layout: Layout, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Packed tokens [N, E] to voxels [N, p * p * p]; of subject and organ tokens they mean nothing."""
        for block in self.blocks:
            tokens, _ = recomputed(self._checkpointing, block, tokens, layout, rotary, False)
        voxels: Tensor = self.voxels(self.norm(tokens))
        return voxels
