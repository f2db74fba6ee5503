"""The dense way through the model gives what the packed way gives, whatever organs subjects have, from the same parameters."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from panfm.config import OrganGrid
from panfm.models.dense import DenseFeatures, DenseModel
from panfm.models.dense_layers import SubjectLayer
from panfm.models.dense_layout import DenseLayout
from panfm.models.pan_organ import Features, PanOrganModel

Scans = Sequence[dict[str, Tensor]]
MakeModel = Callable[..., PanOrganModel]
MakeScans = Callable[[Sequence[Sequence[str]]], Scans]
Grids = dict[str, OrganGrid]

RAGGED = [["brain", "liver"], ["heart"], ["brain", "heart", "liver"], ["liver"], ["heart", "liver"], ["brain", "liver"]]


def packed(model: PanOrganModel, scans: Scans, hidden: dict[str, Tensor] | None, blocks: int = 2) -> Features:
    rows = {o: torch.tensor([row for row, scan in enumerate(scans) if o in scan]) for o in model.organs}
    rows = {organ: held for organ, held in rows.items() if held.numel()}
    volumes = {organ: torch.stack([scans[row][organ] for row in held.tolist()]) for organ, held in rows.items()}
    masks = {organ: hidden[organ][held] for organ, held in rows.items()} if hidden else None
    features: Features = model(volumes, rows, len(scans), masks, blocks)
    return features


def presence_of(model: PanOrganModel, scans: Scans) -> Tensor:
    return torch.tensor([[organ in scan for organ in model.organs] for scan in scans])


def dense(
    model: PanOrganModel, grids: Grids, scans: Scans, hidden: dict[str, Tensor] | None, absent: float = 0.0
) -> DenseFeatures:
    way = DenseModel(model)
    volumes = {
        organ: torch.stack([scan.get(organ, torch.full(tuple(grids[organ].shape), absent)) for scan in scans])
        for organ in model.organs
    }
    tokens = torch.zeros(len(scans), way.layout.length, dtype=torch.bool)
    for organ, mask in (hidden or {}).items():
        span = way.layout.spans[organ]
        tokens[:, span.start + 1 : span.stop] = mask
    features: DenseFeatures = way(volumes, presence_of(model, scans), tokens, 2)
    return features


def drawn_masks(model: PanOrganModel, num_subjects: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    return {
        organ: torch.rand(num_subjects, model.group(organ).num_patches, generator=draws) < 0.5 for organ in model.organs
    }


@pytest.mark.parametrize("present", [RAGGED, [["heart"]], [["brain", "heart", "liver"]] * 2, [["liver"], ["liver"]]])
@pytest.mark.parametrize("is_masked", [False, True])
@torch.no_grad()
def test_same_features_and_attention(
    make_model: MakeModel, make_scans: MakeScans, grids: Grids, present: list[list[str]], is_masked: bool
) -> None:
    model, scans = make_model(), make_scans(present)
    hidden = drawn_masks(model, len(scans)) if is_masked else None
    expected, found = packed(model, scans, hidden), dense(model, grids, scans, hidden)
    layout = DenseModel(model).layout
    torch.testing.assert_close(found.tokens[:, 0], expected.subject, rtol=1e-5, atol=1e-5)
    assert found.attention is not None
    for column, (organ, span) in enumerate(layout.spans.items()):
        held = [row for row, scan in enumerate(scans) if organ in scan]
        lacking = [row for row, scan in enumerate(scans) if organ not in scan]
        assert bool((found.attention[lacking, column] == 0).all())
        if held:
            torch.testing.assert_close(found.tokens[held, span.start], expected.organ[organ], rtol=1e-5, atol=1e-5)
            patches = found.tokens[held, span.start + 1 : span.stop]
            torch.testing.assert_close(patches, expected.patches[organ], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(found.attention[held, column], expected.attention[organ], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_what_stands_in_an_absent_place_is_read_by_nobody(
    make_model: MakeModel, make_scans: MakeScans, grids: Grids
) -> None:
    model, scans = make_model(), make_scans(RAGGED)
    zeros, strange = (dense(model, grids, scans, None, absent).tokens for absent in (0.0, 50.0))
    keys = DenseModel(model).layout.keys(presence_of(model, scans))
    assert torch.equal(zeros[keys], strange[keys])
    assert not torch.equal(zeros[~keys], strange[~keys])


@torch.no_grad()
def test_subject_without_organs_is_finite_and_changes_nobody(
    make_model: MakeModel, make_scans: MakeScans, grids: Grids
) -> None:
    model, scans = make_model(), list(make_scans(RAGGED))
    before = dense(model, grids, scans, None).tokens
    after = dense(model, grids, [*scans[:-1], {}], None).tokens
    assert torch.equal(before[:-1], after[:-1])
    assert bool(torch.isfinite(after).all())


def test_parameters_are_the_models_own(make_model: MakeModel) -> None:
    model = make_model()
    own, through = {id(p) for p in model.parameters()}, [id(p) for p in DenseModel(model).parameters()]
    assert own == set(through)
    assert len(through) == len(own)


def test_places_are_one_after_the_other() -> None:
    layout = DenseLayout.of({"brain": 8, "heart": 2})
    assert layout.spans == {"brain": slice(1, 10), "heart": slice(10, 13)}
    assert (layout.length, layout.organ_tokens) == (13, [1, 10])
    assert layout.columns().sum(0).tolist() == [9.0, 3.0]
    assert layout.columns()[0].sum() == 0
    assert layout.keys(torch.tensor([[False, True]])).tolist() == [[True] + 9 * [False] + 3 * [True]]


def test_rules_of_layers_are_the_gradients_subject_by_subject(make_model: MakeModel) -> None:
    """Each layer with a rule against autograd over one subject after the other, with a random output gradient."""
    way, draws = DenseModel(make_model()), torch.Generator().manual_seed(2)
    length, width = way.layout.length, way.norm.weight.numel()
    inputs: dict[nn.Module, tuple[Tensor, ...]] = {
        way.tokens: (torch.randn(3, length, width, generator=draws), torch.rand(3, length, generator=draws) < 0.3),
        way.queries: (torch.randn(3, width, generator=draws),),
        way.patches["heart"]: (torch.randn(3, 8, 12, 8, generator=draws),),
        **{layer: (torch.randn(3, length, width, generator=draws),) for layer in way.adapters},
    }
    assert {type(layer) for layer in inputs} == {type(m) for m in way.modules() if isinstance(m, SubjectLayer)}
    for layer, given in inputs.items():
        assert isinstance(layer, SubjectLayer)
        gradient = torch.randn(layer(*given).shape, generator=draws)
        with torch.no_grad():
            found = layer.subject_gradients(given, gradient)
        own = list(layer.parameters())
        assert set(found) == set(own)
        for row in range(3):
            output = layer(*(tensor[row : row + 1] for tensor in given))
            expected = torch.autograd.grad(output, own, gradient[row : row + 1])
            for parameter, slow in zip(own, expected, strict=True):
                torch.testing.assert_close(found[parameter][row], slow, rtol=1e-5, atol=2e-5)
