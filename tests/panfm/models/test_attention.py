"""Packed attention is torch's own multi-head attention, run for each subject by itself."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import varlen

from panfm.models.attention import SubjectAttention, attend_by_length, attend_whole
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


def _kernel_as_documented(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn by its documentation, sequence by sequence: its kernel needs a GPU."""
    assert (cu_seq_q.dtype, cu_seq_k.dtype) == (torch.int32, torch.int32)
    assert int(cu_seq_q[-1]) == len(query)
    lengths = cu_seq_q.diff().tolist()
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert max_q == max_k == max(lengths)
    found = []
    for q, k, v in zip(*(torch.split(part, lengths) for part in (query, key, value)), strict=True):
        scores = torch.einsum("qhd,khd->hqk", q, k) / query.shape[-1] ** 0.5
        found.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(found)


def test_one_call_for_all_is_the_same_attention(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", _kernel_as_documented)
    qkv = torch.randn(layout.num_tokens, 3, HEADS, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    whole, by_length = attend_whole(qkv, layout), attend_by_length(qkv, layout)
    assert torch.allclose(whole, by_length, atol=1e-6)
    found, expected = (torch.autograd.grad(out.square().sum(), qkv)[0] for out in (whole, by_length))
    assert torch.allclose(found, expected, atol=1e-5)


def test_torch_takes_that_call(layout: Layout) -> None:
    """Shapes and gradients by torch's own description of the operator, without its kernel."""
    qkv = torch.empty(layout.num_tokens, 3, HEADS, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    there = replace(layout, starts=layout.starts.to("meta"))
    out = attend_whole(qkv, there)
    assert (out.shape, out.dtype) == ((layout.num_tokens, HEADS, 16), torch.bfloat16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_the_gpus_kernel_is_the_same_attention(layout: Layout) -> None:
    there = replace(layout, starts=layout.starts.cuda())
    qkv = torch.randn(layout.num_tokens, 3, HEADS, 16, generator=torch.Generator().manual_seed(1))
    half = qkv.cuda().to(torch.bfloat16).requires_grad_()
    whole, by_length = attend_whole(half, there).float(), attend_by_length(half, there).float()
    assert torch.allclose(whole, by_length, atol=0.03)
    found, expected = (torch.autograd.grad(out.square().sum(), half)[0].float() for out in (whole, by_length))
    assert torch.allclose(found, expected, atol=0.1)
