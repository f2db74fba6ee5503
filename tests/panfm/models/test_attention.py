"""Packed attention is torch's own multi-head attention, run for each subject by itself."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from panfm.models.attention import SubjectAttention
from panfm.models.layout import Layout, pack

WIDTH, HEADS = 24, 2
ROWS = {"brain": torch.tensor([0, 1, 3]), "heart": torch.tensor([1, 2]), "liver": torch.tensor([0, 3])}
PATCHES = {"brain": 4, "heart": 7, "liver": 2}


@pytest.fixture
def layout() -> Layout:
    """Four subjects; 0 and 3 are equally long, and 4 has no organ at all."""
    return pack(5, ROWS, PATCHES)


@pytest.fixture
def attention() -> SubjectAttention:
    module, generator = SubjectAttention(WIDTH, HEADS), torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return module


@pytest.fixture
def torchs_own(attention: SubjectAttention) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    state = {
        "in_proj_weight": attention.qkv.weight,
        "in_proj_bias": attention.qkv.bias,
        "out_proj.weight": attention.out.weight,
        "out_proj.bias": attention.out.bias,
    }
    theirs.load_state_dict({name: parameter.detach().clone() for name, parameter in state.items()})
    return theirs


def _tokens(layout: Layout) -> Tensor:
    return torch.randn(layout.num_tokens, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


def _unturned(layout: Layout) -> tuple[Tensor, Tensor]:
    half = WIDTH // HEADS // 2
    return torch.ones(layout.num_tokens, half), torch.zeros(layout.num_tokens, half)


def test_equals_torchs_attention_subject_by_subject(
    layout: Layout, attention: SubjectAttention, torchs_own: nn.MultiheadAttention
) -> None:
    ours, theirs = _tokens(layout), _tokens(layout)
    out, saliency = attention(ours, layout, _unturned(layout), with_saliency=True)
    assert saliency is not None
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    torch.autograd.backward((out * cotangent).sum())
    for subject in range(layout.num_subjects):
        own = layout.subject_of == subject
        expected, weights = torchs_own(theirs[own], theirs[own], theirs[own], average_attn_weights=True)
        assert torch.allclose(out[own], expected, atol=1e-5)
        assert torch.allclose(saliency[own], weights[0], atol=1e-6)
        torch.autograd.backward((expected * cotangent[own]).sum())
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)
    in_proj = torchs_own.in_proj_weight
    assert in_proj is not None
    assert in_proj.grad is not None
    assert attention.qkv.weight.grad is not None
    assert torch.allclose(attention.qkv.weight.grad, in_proj.grad, atol=1e-4)


def test_saliency_sums_to_one_per_subject_and_carries_no_gradient(layout: Layout, attention: SubjectAttention) -> None:
    out, saliency = attention(_tokens(layout), layout, _unturned(layout), with_saliency=True)
    assert saliency is not None
    assert (saliency.dtype, saliency.requires_grad) == (torch.float32, False)
    sums = torch.zeros(layout.num_subjects).index_add(0, layout.subject_of, saliency)
    assert torch.allclose(sums, torch.ones(layout.num_subjects), atol=1e-6)
    assert float(saliency[4]) == 1.0  # nobody but itself to look at
    again, none = attention(_tokens(layout), layout, _unturned(layout))
    assert none is None
    assert torch.equal(again, out)
