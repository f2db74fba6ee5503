"""The same model in the dense layout: the same parameters and the same features, subject by subject, for training with privacy.

A `DenseModel` is a second way through a `PanOrganModel` and owns nothing: what trains one trains the other. All organs of the
model are computed for every subject; what comes of organs that a subject does not have is read by nobody, since attention
does not look at them and losses do not count them. Each layer that owns parameters is called on all subjects, in one order,
with positional inputs: gradients subject by subject go wrong in silence otherwise.

Scans in their own voxels (native spacing) have no fixed number of voxels and do not fit this layout.
Legend: B subjects, L tokens, O organs, H heads, D features of a head, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.adapters import Adapter
from panfm.models.backbone import Block
from panfm.models.dense_layers import AdapterLayer, PatchLayer, QueryLayer, TokenLayer
from panfm.models.dense_layout import DenseLayout
from panfm.models.pan_organ import PanOrganModel
from panfm.models.rotary import rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFeatures:
    """What the model makes of a batch; of organs that a subject does not have it means nothing."""

    tokens: Tensor
    """[B, L, E]; the subject token is the first."""
    attention: Tensor | None
    """fp32 [B, O], attention of the subject token to all tokens of each organ, 0 where it may not look; or not asked for."""


class DenseModel(nn.Module):
    """A way through a model's own parameters, to be made anew when those move to another device."""

    def __init__(self, model: PanOrganModel) -> None:
        super().__init__()
        groups = {organ: model.group(organ) for organ in model.organs}
        self.layout = DenseLayout.of({organ: group.num_patches for organ, group in groups.items()})
        self._heads = model.config.heads
        angles = [torch.zeros(1, next(iter(groups.values())).angles.shape[1])]
        self._angles = torch.cat([*angles, *(group.angles for group in groups.values())])  # [L, D/2]
        self.patches = nn.ModuleDict({organ: PatchLayer(group.patch_embed) for organ, group in groups.items()})
        self.tokens = TokenLayer(
            self.layout,
            model.trunk.subject_token,
            model.heads.mask_token,
            {organ: group.token for organ, group in groups.items()},
            {organ: group.embedding for organ, group in groups.items()},
        )
        self.blocks = model.trunk.blocks
        self.adapters = nn.ModuleList(
            AdapterLayer(self.layout, {organ: _adapter(group.adapters[number]) for organ, group in groups.items()})
            for number in range(model.config.depth)
        )
        self.norm = model.trunk.norm
        self.queries = QueryLayer({organ: group.query for organ, group in groups.items()})
        self.patch_predictor, self.organ_predictor = model.heads.patch_predictor, model.heads.organ_predictor

    def forward(
        self,
        volumes: Mapping[str, Tensor],
        visible: Tensor,
        hidden: Tensor | None = None,
        saliency_blocks: int = 0,
    ) -> DenseFeatures:
        """Encode a batch.

        Args:
            volumes: organ -> [B, X, Y, Z], all organs of the model; finite also where a subject has none.
            visible: bool [B, O], organs that are looked at.
            hidden: bool [B, L], patches that the mask token stands for; None hides nothing.
            saliency_blocks: last blocks over which the subject token's attention is averaged; 0 skips it.
        """
        if hidden is None:
            hidden = torch.zeros(len(visible), self.layout.length, dtype=torch.bool, device=visible.device)
        tokens = self.tokens(self._placed(volumes), hidden)
        keys = self.layout.keys(visible)
        angles = self._angles.to(tokens.device)
        rotary = (angles.cos(), angles.sin())
        rows: list[Tensor] = []
        for number, (block, adapters) in enumerate(zip(self.blocks, self.adapters, strict=True)):
            assert isinstance(block, Block)
            with_saliency = number >= len(self.blocks) - saliency_blocks
            tokens, row = _through(block, tokens, keys, rotary, self._heads, with_saliency)
            rows += [row] if row is not None else []
            tokens = adapters(tokens)
        return DenseFeatures(tokens=self.norm(tokens), attention=self._by_organ(rows) if rows else None)

    def predict_patches(self, tokens: Tensor) -> Tensor:
        """The teacher's feature of every token, [B, L, E] to [B, L, E]; of patches only it means something."""
        predicted: Tensor = self.patch_predictor(tokens)
        return predicted

    def predict_organs(self, subject_tokens: Tensor) -> Tensor:
        """The teacher's token of every organ, [B, E] to [B, O, E]."""
        predicted: Tensor = self.organ_predictor(self.queries(subject_tokens))
        return predicted

    def _placed(self, volumes: Mapping[str, Tensor]) -> Tensor:
        """Patch tokens in their places, [B, L, E], zeros in those of all other tokens."""
        parts: list[Tensor] = []
        for organ, layer in self.patches.items():
            patches = layer(volumes[organ])
            parts += [] if parts else [patches.new_zeros(len(patches), 1, patches.shape[2])]
            parts += [patches.new_zeros(len(patches), 1, patches.shape[2]), patches]
        return torch.cat(parts, dim=1)

    def _by_organ(self, rows: list[Tensor]) -> Tensor:
        attention = torch.stack(rows).mean(0)
        return torch.stack([attention[:, span].sum(1) for span in self.layout.spans.values()], dim=1)


def _adapter(module: nn.Module) -> Adapter:
    assert isinstance(module, Adapter)
    return module


def _through(
    block: Block, tokens: Tensor, keys: Tensor, rotary: tuple[Tensor, Tensor], heads: int, with_saliency: bool
) -> tuple[Tensor, Tensor | None]:
    """One block; [B, L, E], and fp32 [B, L]: the subject token's attention, mean over heads, if it is asked for."""
    batch, length, _ = tokens.shape
    qkv = block.attention.qkv(block.norm1(tokens)).reshape(batch, length, 3, heads, -1)
    turned = (rotate(part, *rotary).transpose(1, 2) for part in qkv.unbind(2)[:2])
    query, key = turned
    looked_at = keys[:, None, None, :]
    mixed = functional.scaled_dot_product_attention(query, key, qkv[:, :, 2].transpose(1, 2), attn_mask=looked_at)
    row = _subject_token_row(query, key, looked_at) if with_saliency else None
    tokens = tokens + block.attention.out(mixed.transpose(1, 2).flatten(2))
    return tokens + block.mlp_out(functional.gelu(block.mlp_in(block.norm2(tokens)))), row


@torch.no_grad()
def _subject_token_row(query: Tensor, key: Tensor, looked_at: Tensor) -> Tensor:
    scores = (query[:, :, :1] @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1])
    return scores.masked_fill(~looked_at, -math.inf).softmax(-1).mean(1).squeeze(1)
