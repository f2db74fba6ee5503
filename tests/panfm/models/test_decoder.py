"""Encoding visible patches alone is encoding a shorter sequence at the same places; the decoder puts the rest where it was."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from panfm.config import ModelConfig, OrganGrid
from panfm.models.backbone import Block
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel

Grids = dict[str, OrganGrid]


@pytest.fixture
def model(config: ModelConfig, grids: Grids) -> PanOrganModel:
    """With a decoder, and no parameter at 0 or 1."""
    asked = replace(config, decoder_depth=2)
    built, noise = build_model(asked, grids), torch.Generator().manual_seed(0)
    start = initial_parameters(asked, grids, 0)
    load_parameters(built, {n: p + 0.1 * torch.randn(p.shape, generator=noise) for n, p in start.items()})
    return built


def _batch(model: PanOrganModel, grids: Grids) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Two subjects, the second without the last organ; volumes, rows, and one visible patch more in larger organs."""
    noise, organs = torch.Generator().manual_seed(1), list(grids)
    rows = {organ: torch.tensor([0, 1] if organ != organs[-1] else [0]) for organ in organs}
    volumes = {o: torch.randn(len(rows[o]), *grids[o].shape, generator=noise) for o in organs}
    masks = {}
    for organ in organs:
        total = model.group(organ).num_patches
        order = torch.rand(len(rows[organ]), total, generator=noise).argsort(1)
        masks[organ] = order >= max(1, total // 3)
    return volumes, rows, masks


def test_with_nothing_hidden_it_is_the_whole_encoding(model: PanOrganModel, grids: Grids) -> None:
    volumes, rows, masks = _batch(model, grids)
    nothing = {organ: torch.zeros_like(mask) for organ, mask in masks.items()}
    with torch.no_grad():
        whole, visible = model(volumes, rows, 2), model.encode_visible(volumes, rows, 2, nothing)
    assert torch.equal(whole.subject, visible.subject)
    assert all(torch.equal(whole.patches[organ], visible.patches[organ]) for organ in rows)


def test_hidden_patches_are_as_if_no_one_could_look_at_them(model: PanOrganModel, grids: Grids) -> None:
    """An oracle by other means: the whole sequence, with hidden tokens' keys out of every softmax."""
    volumes, rows, masks = _batch(model, grids)
    with torch.no_grad():
        found = model.encode_visible(volumes, rows, 2, masks)
        for row in (0, 1):
            subject, patches = _one_by_one(model, volumes, rows, masks, row)
            assert torch.allclose(found.subject[row], subject, atol=1e-4)
            for organ, expected in patches.items():
                assert torch.allclose(found.patches[organ][rows[organ].tolist().index(row)], expected, atol=1e-4)


def _one_by_one(
    model: PanOrganModel, volumes: dict[str, Tensor], rows: dict[str, Tensor], masks: dict[str, Tensor], row: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """One subject by a loop over blocks and heads, with a mask on keys instead of a shorter sequence."""
    organs = [organ for organ in rows if row in rows[organ].tolist()]
    tokens, angles, visible, spans = [model.trunk.subject_token[None]], [], [torch.tensor([True])], {}
    angles.append(torch.zeros(1, model.group(organs[0]).angles.shape[1]))
    for organ in organs:
        place = rows[organ].tolist().index(row)
        start = sum(len(part) for part in tokens)
        tokens.append(model.group(organ).embed(volumes[organ][[place]], None, model.heads.mask_token)[0])
        spans[organ] = slice(start, start + len(tokens[-1]))
        angles.append(model.group(organ).angles)
        visible += [torch.tensor([True]), ~masks[organ][place]]
    x, turn, seen = torch.cat(tokens), torch.cat(angles), torch.cat(visible)
    for number, block in enumerate(model.trunk.blocks):
        assert isinstance(block, Block)
        x = x + _attended(block, x, turn, seen)
        x = x + block.mlp_out(torch.nn.functional.gelu(block.mlp_in(block.norm2(x))))
        x = torch.cat([x[:1], *(model.group(organ).adapters[number](x[span]) for organ, span in spans.items())])
    x = model.trunk.norm(x)
    patches = {organ: x[span][1:][seen[span][1:]] for organ, span in spans.items()}
    return x[0], patches


def _attended(block: Block, x: Tensor, turn: Tensor, seen: Tensor) -> Tensor:
    attention = block.attention
    heads, (length, width) = attention.heads, x.shape
    qkv = attention.qkv(block.norm1(x)).reshape(length, 3, heads, width // heads)
    out = []
    for head in range(heads):
        query, key, value = (qkv[:, part, head] for part in range(3))
        query, key = _turned(query, turn), _turned(key, turn)
        scores = (query @ key.T / (width // heads) ** 0.5).masked_fill(~seen, -torch.inf)
        out.append(scores.softmax(-1) @ value)
    mixed: Tensor = attention.out(torch.cat(out, dim=1))
    return mixed


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Pair i is the complex number x_i + 1j x_(i + D/2), turned by its angle."""
    half = x.shape[1] // 2
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=1)


def test_the_decoder_tells_every_patch_and_hidden_ones_by_their_place(model: PanOrganModel, grids: Grids) -> None:
    volumes, rows, masks = _batch(model, grids)
    with torch.no_grad():
        decoded = model.decode(model.encode_visible(volumes, rows, 2, masks), rows, masks)
    for organ, voxels in decoded.items():
        assert voxels.shape == (*masks[organ].shape, model.config.patch**3)
        hidden = voxels[0][masks[organ][0]]
        if len(hidden) > 1:  # mask tokens are one vector: what differs is their place
            assert float((hidden[0] - hidden[1]).abs().max()) > 1e-3


def test_patches_return_to_their_places(model: PanOrganModel) -> None:
    decoder = model.heads.decoder
    assert decoder is not None
    hidden = torch.tensor([[True, False, True, False], [False, False, True, True]])
    visible = torch.arange(4.0).reshape(2, 2, 1).expand(2, 2, model.config.width)
    placed = decoder.placed(visible, hidden)
    rows = [[None, 0.0, None, 1.0], [2.0, 3.0, None, None]]
    for row, expected in enumerate(rows):
        for place, value in enumerate(expected):
            wanted = decoder.mask_token if value is None else torch.full((model.config.width,), value)
            assert torch.equal(placed[row, place], wanted)


def test_a_subject_is_decoded_the_same_alone_and_in_company(model: PanOrganModel, grids: Grids) -> None:
    volumes, rows, masks = _batch(model, grids)
    with torch.no_grad():
        together = model.decode(model.encode_visible(volumes, rows, 2, masks), rows, masks)
        first = {organ: torch.tensor([0]) for organ in rows}
        alone_masks = {organ: mask[:1] for organ, mask in masks.items()}
        alone = model.encode_visible({o: v[:1] for o, v in volumes.items()}, first, 1, alone_masks)
        for organ, voxels in model.decode(alone, first, alone_masks).items():
            assert torch.allclose(voxels[0], together[organ][0], atol=1e-5)
