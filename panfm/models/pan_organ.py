"""The pan-organ model: from the scans that a subject has to a subject embedding and organ embeddings.

A subject's sequence is its subject token, then for each present organ its organ token and patch tokens; absent organs are
not there at all, so nothing is imputed and nothing is spent on them. Any non-empty set of organs will do.

Legend: B subjects, n_o subjects with organ o, XYZ voxels, T_o patches, E width, N packed tokens.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panfm.config import ModelConfig, OrganGrid
from panfm.models.adapters import Adapter
from panfm.models.backbone import Trunk
from panfm.models.heads import Heads
from panfm.models.layout import Layout, pack
from panfm.models.patch_embed import PatchEmbed, Volumes
from panfm.models.rotary import grid_positions, rotary_angles


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the model makes of a batch."""

    subject: Tensor
    """[B, E], the subject token."""
    organ: dict[str, Tensor]
    """organ -> [n_o, E], the organ token."""
    patches: dict[str, Tensor]
    """organ -> [n_o, T_o, E]."""
    attention: dict[str, Tensor]
    """organ -> fp32 [n_o], attention of the subject token to all tokens of the organ; empty unless asked for."""


class OrganGroup(nn.Module):
    """Everything that belongs to one organ: trained by the sites that image it, and by nobody else."""

    def __init__(self, config: ModelConfig, grid: OrganGrid) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.token = nn.Parameter(torch.empty(config.width))
        self.embedding = nn.Parameter(torch.empty(config.width))
        self.query = nn.Parameter(torch.empty(config.width))
        self.adapters = nn.ModuleList(Adapter(config.width, config.adapter_width) for _ in range(config.depth))
        counts = tuple(side // config.patch for side in grid.shape)
        angles = rotary_angles(grid_positions((counts[0], counts[1], counts[2])), config.width // config.heads)
        self.num_patches = angles.shape[0]
        self.angles = torch.cat(
            (torch.zeros(1, angles.shape[1], device="cpu"), angles)
        )  # the organ token is not turned

    def embed(self, volumes: Volumes, patch_mask: Tensor | None, mask_token: Tensor) -> Tensor:
        """Volumes [n, X, Y, Z], or blocks of n, and hidden patches bool [n, T] to tokens [n, 1 + T, E]."""
        patches = self.patch_embed(volumes)
        if patch_mask is not None:
            patches = torch.where(patch_mask.unsqueeze(-1), mask_token, patches)
        tokens = torch.cat((self.token.expand(len(patches), 1, -1), patches), dim=1)
        return tokens + self.embedding


class PanOrganModel(nn.Module):
    """Trunk, heads and the groups of some organs; a site holds only its own."""

    def __init__(self, config: ModelConfig, grids: Mapping[str, OrganGrid], checkpointing: bool = False) -> None:
        """Lay it out.

        Args:
            checkpointing: whether what blocks compute is computed again in the backward pass, and not kept for it.
        """
        super().__init__()
        self.config = config
        hidden = round(config.width * config.mlp_ratio)
        self.trunk = Trunk(config.width, config.depth, config.heads, hidden, checkpointing)
        self.heads = Heads(config, checkpointing)
        self.organs = nn.ModuleDict({organ: OrganGroup(config, grid) for organ, grid in grids.items()})

    def group(self, organ: str) -> OrganGroup:
        """The organ's group of parameters."""
        group = self.organs[organ]
        assert isinstance(group, OrganGroup)
        return group

    def forward(
        self,
        volumes: Mapping[str, Volumes],
        rows: Mapping[str, Tensor],
        num_subjects: int,
        patch_masks: Mapping[str, Tensor] | None = None,
        saliency_blocks: int = 0,
    ) -> Features:
        """Encode a batch.

        Args:
            volumes: organ -> [n_o, X, Y, Z], float, or blocks of n_o scans in their own voxels; only organs that some
                subject has.
            rows: organ -> int64 [n_o]: which of the B subjects each volume is of, ascending; the same organs as `volumes`.
            num_subjects: B.
            patch_masks: organ -> bool [n_o, T_o], True where the patch is hidden; None hides nothing.
            saliency_blocks: last blocks over which the subject token's attention is averaged; 0 skips it.
        """
        groups = {organ: self.group(organ) for organ in rows}  # one order of organs for tokens, layout and positions
        embedded = {
            organ: group.embed(volumes[organ], patch_masks[organ] if patch_masks else None, self.heads.mask_token)
            for organ, group in groups.items()
        }
        angles = {organ: group.angles.repeat(rows[organ].numel(), 1) for organ, group in groups.items()}
        return self._encode(embedded, angles, rows, num_subjects, saliency_blocks)

    def encode_visible(
        self,
        volumes: Mapping[str, Volumes],
        rows: Mapping[str, Tensor],
        num_subjects: int,
        patch_masks: Mapping[str, Tensor],
    ) -> Features:
        """Encode a batch from its visible patches alone: hidden ones take no token, so they cost and tell nothing.

        Args:
            patch_masks: organ -> bool [n_o, T_o], True where the patch is hidden; equally many in each scan of an organ.
        Returns: features whose `patches` are those that are visible, [n_o, V_o, E], in the order of the grid.
        """
        embedded: dict[str, Tensor] = {}
        angles: dict[str, Tensor] = {}
        for organ in rows:
            group, kept = self.group(organ), _with_organ_token(~patch_masks[organ])
            tokens = group.embed(volumes[organ], None, self.heads.mask_token)
            embedded[organ] = tokens[kept].reshape(len(kept), -1, tokens.shape[-1])
            angles[organ] = group.angles.to(kept.device).expand(*kept.shape, -1)[kept]
        return self._encode(embedded, angles, rows, num_subjects, 0)

    def decode(
        self, features: Features, rows: Mapping[str, Tensor], patch_masks: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Voxels of all patches, from the features of visible ones (`encode_visible`): organ -> [n_o, T_o, p * p * p].

        Args:
            rows, patch_masks: as they were encoded.
        """
        decoder, num_subjects = self.heads.decoder, len(features.subject)
        assert decoder is not None, "the recipe's check gives the model the head of its objective"
        tokens = [decoder.embed(features.subject)]
        for organ in rows:
            whole = (decoder.embed(features.organ[organ]).unsqueeze(1), decoder.embed(features.patches[organ]))
            scans = torch.cat((whole[0], decoder.placed(whole[1], patch_masks[organ])), dim=1)
            tokens.append((scans + self.group(organ).embedding).flatten(0, 1))
        layout = pack(num_subjects, rows, {organ: self.group(organ).num_patches for organ in rows})
        angles = {organ: self.group(organ).angles.repeat(rows[organ].numel(), 1) for organ in rows}
        voxels = decoder(torch.cat(tokens), layout, _rotary(angles, layout))
        return {organ: _per_scan(voxels, layout, organ)[:, 1:] for organ in rows}

    def _encode(
        self,
        embedded: Mapping[str, Tensor],
        angles: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        num_subjects: int,
        saliency_blocks: int,
    ) -> Features:
        """Tokens of scans, organ -> [n_o, 1 + T_o, E], and the angles of each of them, organ -> [n_o * (1 + T_o), D/2]."""
        layout = pack(num_subjects, rows, {organ: tokens.shape[1] - 1 for organ, tokens in embedded.items()})
        flat = [tokens.flatten(0, 1) for tokens in embedded.values()]
        tokens = torch.cat([self.trunk.subject_token.expand(num_subjects, -1), *flat])
        adapters: dict[str, Sequence[nn.Module]] = {organ: list(self.group(organ).adapters) for organ in embedded}
        tokens, saliency = self.trunk(tokens, layout, _rotary(angles, layout), adapters, saliency_blocks)
        return _unpack(tokens, saliency, layout)


def _with_organ_token(visible: Tensor) -> Tensor:
    """bool [n, T] to [n, 1 + T]: the organ token, which comes first, is always visible."""
    return torch.cat((torch.ones_like(visible[:, :1]), visible), dim=1)


def _rotary(by_organ: Mapping[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every packed token, [N, D/2]; subject tokens are not turned."""
    first = next(iter(by_organ.values()))
    angles = [first.new_zeros(layout.num_subjects, first.shape[1]), *by_organ.values()]
    packed = torch.cat(angles).to(layout.order.device)
    return packed.cos(), packed.sin()


def _unpack(tokens: Tensor, saliency: Tensor | None, layout: Layout) -> Features:
    scans = {organ: _per_scan(tokens, layout, organ) for organ in layout.spans}
    attention: dict[str, Tensor] = {}
    if saliency is not None:
        attention = {organ: _per_scan(saliency, layout, organ).sum(1) for organ in layout.spans}
    return Features(
        subject=tokens[: layout.num_subjects],
        organ={organ: scan[:, 0] for organ, scan in scans.items()},
        patches={organ: scan[:, 1:] for organ, scan in scans.items()},
        attention=attention,
    )


def _per_scan(packed: Tensor, layout: Layout, organ: str) -> Tensor:
    """An organ's block of a packed [N, ...] as [n_o, 1 + T_o, ...]."""
    return packed[layout.spans[organ]].reshape(-1, layout.tokens_per_scan[organ], *packed.shape[1:])
