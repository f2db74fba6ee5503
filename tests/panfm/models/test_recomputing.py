"""Computing activations again changes no bit, and keeps fewer of them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from panfm.config import ModelConfig, OrganGrid
from panfm.models.build import build_model, load_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.models.recomputing import recomputed

Scans = Sequence[dict[str, Tensor]]
PRESENCE = (["brain", "heart"], ["heart"], ["brain", "liver", "heart"])


def _loss(model: PanOrganModel, scans: Scans) -> Tensor:
    """Of all features, as a student's would be."""
    rows = {
        organ: torch.tensor([row for row, own in enumerate(scans) if organ in own])
        for organ in model.organs
        if any(organ in own for own in scans)
    }
    volumes = {organ: torch.stack([scans[row][organ] for row in present.tolist()]) for organ, present in rows.items()}
    features = model(volumes, rows, len(scans), saliency_blocks=1)
    parts = [features.subject, *features.organ.values(), *features.patches.values()]
    loss: Tensor = torch.stack([part.square().mean() + part[..., 0].sum() for part in parts]).sum()
    return loss


def _kept(model: PanOrganModel, scans: Scans) -> tuple[int, dict[str, Tensor]]:
    """Bytes that one pass keeps for its gradients, parameters left out, and the gradients."""
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = _loss(model, scans)
    total = sum(kept.values())
    torch.autograd.backward(loss)
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_the_same_bits_from_fewer_bytes(
    config: ModelConfig,
    grids: dict[str, OrganGrid],
    make_model: Callable[..., PanOrganModel],
    make_scans: Callable[[Sequence[Sequence[str]]], Scans],
) -> None:
    plain, scans = make_model(), make_scans(PRESENCE)
    frugal = build_model(config, grids, checkpointing=True)
    load_parameters(frugal, dict(plain.named_parameters()))
    (much, expected), (little, found) = _kept(plain, scans), _kept(frugal, scans)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert little < 0.3 * much  # measured 0.14 on this model of three blocks


def test_without_gradients_nothing_is_computed_twice() -> None:
    calls: list[bool] = []

    def doubled(values: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return 2 * values.sin()

    values = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        recomputed(True, doubled, values)
    assert calls == [False]
    torch.autograd.backward(recomputed(False, doubled, values).sum())
    assert calls == [False, True]
    torch.autograd.backward(recomputed(True, doubled, values).sum())
    assert calls == [False, True, True, True]
    assert values.grad == pytest.approx(torch.full((3,), 4 * float(torch.ones(()).cos())))
