"""The packed model equals a slow one that walks each subject, head, pair and token by itself; and what follows from it.

The slow model below is written from the docstrings, not from the code: one subject at a time, patches by convolution,
rotations as complex numbers, attention as an explicit softmax. Nothing is packed, permuted or shared between subjects.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from panfm.config import ModelConfig, OrganGrid
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.models.rotary import BASE

Scans = Sequence[dict[str, Tensor]]
Masks = Sequence[dict[str, Tensor]]
MakeModel = Callable[..., PanOrganModel]
MakeScans = Callable[[Sequence[Sequence[str]]], Scans]

RAGGED = [["brain", "liver"], ["heart"], ["brain", "heart", "liver"], ["liver"], ["heart", "liver"], ["brain", "liver"]]


def _run(model: PanOrganModel, scans: Scans, masks: Masks | None = None, saliency_blocks: int = 0) -> Features:
    """The model on a batch of these subjects."""
    rows = {o: [row for row, scan in enumerate(scans) if o in scan] for o in model.organs}
    rows = {organ: present for organ, present in rows.items() if present}
    patch_masks = {o: torch.stack([masks[row][o] for row in present]) for o, present in rows.items()} if masks else None
    features: Features = model(
        {o: torch.stack([scans[row][o] for row in present]) for o, present in rows.items()},
        {o: torch.tensor(present) for o, present in rows.items()},
        len(scans),
        patch_masks,
        saliency_blocks,
    )
    return features


def _of_subject(features: Features, scans: Scans, row: int) -> dict[str, Tensor]:
    """One subject's part of a batch: its subject token as "", and for each organ [1 + T, E]."""
    part = {"": features.subject[row]}
    for organ in scans[row]:
        place = [r for r, scan in enumerate(scans) if organ in scan].index(row)
        part[organ] = torch.cat((features.organ[organ][place : place + 1], features.patches[organ][place]))
    return part


class _SlowModel:
    """The model of one subject, as functions of its named parameters."""

    def __init__(self, parameters: Mapping[str, Tensor], config: ModelConfig, grids: Mapping[str, OrganGrid]) -> None:
        self.p, self.config, self.grids = parameters, config, grids

    def features(
        self, scan: dict[str, Tensor], mask: dict[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Tokens by organ ("" is the subject token) and, for each block, the subject token's attention [L]."""
        parts, turns = [self.p["trunk.subject_token"].unsqueeze(0)], [torch.zeros(1, self._pairs)]
        for organ, volume in scan.items():
            parts.append(self._embedded(organ, volume, mask[organ] if mask else None))
            turns += [torch.zeros(1, self._pairs), self._angles(organ)]
        lengths, turn = [len(part) for part in parts], torch.polar(torch.ones(1), torch.cat(turns))
        tokens, rows = torch.cat(parts), []
        for block in range(self.config.depth):
            name = f"trunk.blocks.{block}"
            mixed, row = self._attention(self._norm(tokens, f"{name}.norm1"), turn, f"{name}.attention")
            rows.append(row)
            tokens = tokens + mixed
            inner = functional.gelu(self._linear(self._norm(tokens, f"{name}.norm2"), f"{name}.mlp_in"))
            tokens = tokens + self._linear(inner, f"{name}.mlp_out")
            first, *others = torch.split(tokens, lengths)
            adapted = [self._adapted(o, organ, block) for o, organ in zip(others, scan, strict=True)]
            tokens = torch.cat([first, *adapted])
        first, *others = torch.split(self._norm(tokens, "trunk.norm"), lengths)
        return {"": first[0], **dict(zip(scan, others, strict=True))}, rows

    @property
    def _pairs(self) -> int:
        return self.config.width // self.config.heads // 2

    def _embedded(self, organ: str, volume: Tensor, mask: Tensor | None) -> Tensor:
        name, patch = f"organs.{organ}", self.config.patch
        weight, bias = self.p[f"{name}.patch_embed.weight"], self.p[f"{name}.patch_embed.bias"]
        patches = functional.conv3d(volume[None, None], weight, bias, stride=patch)[0].flatten(1).T
        rows = [
            self.p["heads.mask_token"] if mask is not None and mask[t] else token for t, token in enumerate(patches)
        ]
        return torch.stack([self.p[f"{name}.token"], *rows]) + self.p[f"{name}.embedding"]

    def _angles(self, organ: str) -> Tensor:
        x, y, z = (side // self.config.patch for side in self.grids[organ].shape)
        places = [(i, j, k) for i in range(x) for j in range(y) for k in range(z)]
        counts = [len(range(axis, self._pairs, 3)) for axis in range(3)]
        return torch.tensor(
            [[place[i % 3] * BASE ** (-(i // 3) / counts[i % 3]) for i in range(self._pairs)] for place in places]
        )

    def _attention(self, tokens: Tensor, turn: Tensor, name: str) -> tuple[Tensor, Tensor]:
        width, heads = self.config.width, self.config.heads
        query, key, value = torch.split(self._linear(tokens, f"{name}.qkv"), width, dim=1)
        outputs, rows = [], []
        for h in range(heads):
            own = slice(h * width // heads, (h + 1) * width // heads)
            q, k = (torch.complex(*half[:, own].chunk(2, dim=1)) * turn for half in (query, key))
            attention = ((q @ k.conj().T).real / math.sqrt(width // heads)).softmax(1)
            outputs.append(attention @ value[:, own])
            rows.append(attention[0])
        return self._linear(torch.cat(outputs, dim=1), f"{name}.out"), torch.stack(rows).mean(0)

    def _adapted(self, tokens: Tensor, organ: str, block: int) -> Tensor:
        name = f"organs.{organ}.adapters.{block}"
        inner = functional.gelu(self._linear(self._norm(tokens, f"{name}.norm"), f"{name}.down"))
        return tokens + self._linear(inner, f"{name}.up")

    def _linear(self, tokens: Tensor, name: str) -> Tensor:
        return tokens @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def _norm(self, tokens: Tensor, name: str) -> Tensor:
        centred = tokens - tokens.mean(1, keepdim=True)
        return (
            centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * self.p[f"{name}.weight"]
            + self.p[f"{name}.bias"]
        )


def _random_masks(scans: Scans, grids: dict[str, OrganGrid], patch: int) -> Masks:
    generator = torch.Generator().manual_seed(3)
    sizes = {organ: math.prod(grid.shape) // patch**3 for organ, grid in grids.items()}
    return [{organ: torch.rand(sizes[organ], generator=generator) < 0.5 for organ in scan} for scan in scans]


@pytest.mark.parametrize("masked", [False, True])
def test_packed_equals_slow_features_gradients_and_attention(
    make_model: MakeModel, make_scans: MakeScans, config: ModelConfig, grids: dict[str, OrganGrid], masked: bool
) -> None:
    model, scans = make_model(), make_scans(RAGGED)
    masks = _random_masks(scans, grids, config.patch) if masked else None
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    slow = _SlowModel(copies, config, grids)
    features = _run(model, scans, masks, saliency_blocks=2)
    generator = torch.Generator().manual_seed(4)
    ours, theirs = torch.zeros(()), torch.zeros(())
    for row in range(len(scans)):
        expected, rows = slow.features(scans[row], masks[row] if masks else None)
        found = _of_subject(features, scans, row)
        assert found.keys() == expected.keys()
        for part in expected:
            assert torch.allclose(found[part], expected[part], atol=1e-5), (row, part)
            cotangent = torch.randn(expected[part].shape, generator=generator)
            ours, theirs = ours + (found[part] * cotangent).sum(), theirs + (expected[part] * cotangent).sum()
        _assert_attention(features, scans, row, (rows[-1] + rows[-2]) / 2)
    torch.autograd.backward(ours)
    torch.autograd.backward(theirs)
    _assert_gradients(model, copies)


def _assert_attention(features: Features, scans: Scans, row: int, expected_row: Tensor) -> None:
    start = 1
    for organ in scans[row]:
        place = [r for r, scan in enumerate(scans) if organ in scan].index(row)
        length = 1 + features.patches[organ].shape[1]
        expected = expected_row[start : start + length].sum()
        assert torch.allclose(features.attention[organ][place], expected, atol=1e-6)
        start += length


def _assert_gradients(model: PanOrganModel, copies: Mapping[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        expected = copies[name].grad
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        scale = float(expected.abs().max())
        assert torch.allclose(parameter.grad, expected, atol=1e-5 * max(1.0, scale)), name


presences = st.lists(
    st.lists(st.sampled_from(["brain", "heart", "liver"]), min_size=1, unique=True), min_size=2, max_size=5
)


@settings(max_examples=10)
@given(presence=presences, data=st.data())
def test_permuting_subjects_permutes_features(
    make_model: MakeModel, make_scans: MakeScans, presence: list[list[str]], data: st.DataObject
) -> None:
    model, scans = make_model(), make_scans(presence)
    order = data.draw(st.permutations(range(len(scans))))
    shuffled = [scans[row] for row in order]
    with torch.no_grad():
        before, after = _run(model, scans), _run(model, shuffled)
    for place, row in enumerate(order):
        here, there = _of_subject(before, scans, row), _of_subject(after, shuffled, place)
        for part in here:
            assert torch.allclose(here[part], there[part], atol=1e-5)


@settings(max_examples=10)
@given(presence=presences)
def test_a_subjects_features_do_not_depend_on_the_others(
    make_model: MakeModel, make_scans: MakeScans, presence: list[list[str]]
) -> None:
    model, scans = make_model(), make_scans(presence)
    with torch.no_grad():
        together = _of_subject(_run(model, scans), scans, 0)
        alone = _of_subject(_run(model, scans[:1]), scans[:1], 0)
    for part in together:
        assert torch.allclose(together[part], alone[part], atol=1e-5)


def test_no_gradient_flows_between_subjects(make_model: MakeModel, make_scans: MakeScans) -> None:
    scans = [{organ: volume.clone().requires_grad_() for organ, volume in scan.items()} for scan in make_scans(RAGGED)]
    part = _of_subject(_run(make_model(), scans), scans, 2)
    torch.autograd.backward(torch.cat([tokens.flatten() for tokens in part.values()]).square().sum())
    for row, scan in enumerate(scans):
        for volume in scan.values():
            assert volume.grad is not None
            assert bool(volume.grad.any()) == (row == 2)


def test_a_hidden_patch_is_not_seen_and_a_visible_one_is(
    make_model: MakeModel, make_scans: MakeScans, config: ModelConfig, grids: dict[str, OrganGrid]
) -> None:
    model, scans = make_model(), make_scans(RAGGED)
    masks = _random_masks(scans, grids, config.patch)
    masks[2]["brain"][0], masks[2]["brain"][1] = True, False
    with torch.no_grad():
        before = _run(model, scans, masks).subject
        scans[2]["brain"][:4, :4, :4] += 10  # patch 0, hidden
        assert torch.equal(_run(model, scans, masks).subject, before)
        scans[2]["brain"][:4, :4, 4:] += 10  # patch 1, visible
        assert not torch.allclose(_run(model, scans, masks).subject[2], before[2], atol=1e-3)


def test_the_order_in_which_organs_are_given_does_not_matter(make_model: MakeModel, make_scans: MakeScans) -> None:
    """Volumes and rows are looked up by organ: two dictionaries in different orders mean the same batch."""
    model, scans = make_model(), make_scans([["brain", "heart"], ["brain", "heart"]])
    volumes = {organ: torch.stack([scan[organ] for scan in scans]) for organ in ("brain", "heart")}
    rows = {organ: torch.tensor([0, 1]) for organ in ("heart", "brain")}
    with torch.no_grad():
        expected = _run(model, scans).subject
        assert torch.allclose(model(volumes, rows, 2).subject, expected, atol=1e-5)


def test_shapes_and_attention_on_request(make_model: MakeModel, make_scans: MakeScans, config: ModelConfig) -> None:
    features = _run(make_model(), make_scans(RAGGED))
    assert features.subject.shape == (6, config.width)
    assert {organ: tuple(tokens.shape) for organ, tokens in features.patches.items()} == {
        "brain": (3, 8, 24),
        "heart": (3, 12, 24),
        "liver": (5, 2, 24),
    }
    assert {organ: tuple(tokens.shape) for organ, tokens in features.organ.items()} == {
        "brain": (3, 24),
        "heart": (3, 24),
        "liver": (5, 24),
    }
    assert features.attention == {}
