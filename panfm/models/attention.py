"""Self-attention within each subject, over packed tokens: one call for all subjects whose sequences are equally long, or, where
there is a kernel for sequences of any length (bf16 on a GPU), one call for all.

Legend: N packed tokens, S subjects of a bucket, L tokens of each, H heads, D features of a head, E = H * D.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.layout import Bucket, Layout, permute
from panfm.models.precision import full_precision
from panfm.models.rotary import rotate


class SubjectAttention(nn.Module):
    """Multi-head attention in which a token sees exactly the tokens of its own subject."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, tokens: Tensor, layout: Layout, rotary: tuple[Tensor, Tensor], with_saliency: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            tokens: [N, E], packed.
            rotary: cosine and sine, [N, D/2] each.
            with_saliency: also return the attention of each subject's subject token.
        Returns: [N, E], and fp32 [N]: the attention that a token receives from its subject's subject token, averaged over
            heads (or None). Over the tokens of a subject it sums to 1.
        """
        query, key, value = self.qkv(tokens).reshape(len(tokens), 3, self.heads, -1).unbind(1)
        query, key = rotate(query, *rotary), rotate(key, *rotary)
        sorted_qkv = permute(torch.stack((query, key, value), dim=1), layout.order, layout.inverse)
        attend = attend_whole if _has_kernel(sorted_qkv) else attend_by_length
        saliency = _subject_token_rows(sorted_qkv, layout) if with_saliency else None
        out = self.out(permute(attend(sorted_qkv, layout).flatten(1), layout.inverse, layout.order))
        return out, saliency.index_select(0, layout.inverse) if saliency is not None else None


def attend_by_length(sorted_qkv: Tensor, layout: Layout) -> Tensor:
    """Attention of subject-major tokens, [N, 3, H, D] to [N, H, D], bucket by bucket."""
    buckets = [_heads_first(sorted_qkv, bucket) for bucket in layout.buckets]
    return torch.cat([functional.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(0, 1) for qkv in buckets])


def attend_whole(sorted_qkv: Tensor, layout: Layout) -> Tensor:
    """The same in one call of a kernel that is told where sequences begin; `_has_kernel` says for which tensors there is one."""
    from torch.nn.attention import (
        varlen,
    )  # not above: it brings in torch's compiler, seconds for those who never call it

    query, key, value = sorted_qkv.unbind(1)
    longest = layout.buckets[-1].length
    mixed = varlen.varlen_attn(query, key, value, layout.starts, layout.starts, longest, longest)
    assert isinstance(mixed, Tensor)  # no second result was asked for
    return mixed


def _has_kernel(sorted_qkv: Tensor) -> bool:
    """FlashAttention's kernel for variable lengths: half precision on a GPU, heads of a multiple of 8 features, at most 256."""
    head = sorted_qkv.shape[-1]
    return sorted_qkv.is_cuda and sorted_qkv.dtype is torch.bfloat16 and head % 8 == 0 and head <= 256


def _heads_first(sorted_qkv: Tensor, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """One bucket's query, key and value, [S, H, L, D] each."""
    stop = bucket.start + bucket.num_subjects * bucket.length
    rows = sorted_qkv[bucket.start : stop].reshape(bucket.num_subjects, bucket.length, *sorted_qkv.shape[1:])
    query, key, value = rows.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


@torch.no_grad()
def _subject_token_rows(sorted_qkv: Tensor, layout: Layout) -> Tensor:
    """Attention of the first token of each sequence, mean over heads, fp32 [N]."""
    with full_precision(sorted_qkv):
        buckets = [_heads_first(sorted_qkv, bucket) for bucket in layout.buckets]
        return torch.cat([_subject_token_row(query.float(), key.float()) for query, key, _ in buckets])


def _subject_token_row(query: Tensor, key: Tensor) -> Tensor:
    """Of one bucket, flattened to [S * L]."""
    scores = (query[:, :, :1] @ key.transpose(-1, -2)) / math.sqrt(query.shape[-1])
    return scores.softmax(-1).mean(1).flatten()
