"""Where each subject's tokens lie when only present organs take compute.

Tokens of a batch are packed organ-major: first one subject token per subject, then for each organ the tokens of the
subjects that have it (organ token first, then patch tokens). An organ's tokens are then one contiguous block, on which its
patch embedding and its adapters work without gathering; attention needs subject-major sequences, and `order` is the
permutation that gives them, grouped into buckets of subjects with equally long sequences.

Legend: B subjects, N packed tokens, n_o subjects with organ o, T_o patches of organ o, L tokens of one subject.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Subjects whose sequences are equally long, one after the other in the permuted tokens."""

    start: int
    num_subjects: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The packing of one batch; built by `pack`."""

    num_subjects: int
    spans: dict[str, slice]
    """organ -> its block of packed tokens, n_o * (1 + T_o) of them."""
    tokens_per_scan: dict[str, int]
    """organ -> 1 + T_o."""
    rows: dict[str, Tensor]
    """organ -> int64 [n_o], the subjects that have it, ascending."""
    order: Tensor
    """int64 [N]: packed position of each token of the subject-major order; a permutation."""
    inverse: Tensor
    """int64 [N]: the inverse permutation."""
    buckets: tuple[Bucket, ...]
    """In the order of rising length."""
    starts: Tensor
    """int32 [B + 1]: where each sequence of the subject-major order begins, and where the last one ends."""
    subject_of: Tensor
    """int64 [N]: the subject of each packed token."""

    @property
    def num_tokens(self) -> int:
        return self.order.numel()


def pack(num_subjects: int, rows: Mapping[str, Tensor], patches: Mapping[str, int]) -> Layout:
    """The layout of a batch.

    Args:
        num_subjects: B.
        rows: organ -> int64 [n_o] on any device, ascending; organs in the order in which they are packed; n_o >= 1.
        patches: organ -> T_o.
    """
    device = next(iter(rows.values())).device if rows else torch.device("cpu")
    owners = [torch.arange(num_subjects)]
    spans: dict[str, slice] = {}
    start = num_subjects
    for organ, present in rows.items():
        owners.append(present.cpu().repeat_interleave(1 + patches[organ]))
        spans[organ] = slice(start, start + owners[-1].numel())
        start = spans[organ].stop
    subject_of = torch.cat(owners)
    order, buckets = _subject_major(subject_of, num_subjects)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel())
    return Layout(
        num_subjects=num_subjects,
        spans=spans,
        tokens_per_scan={organ: 1 + patches[organ] for organ in rows},
        rows=dict(rows),
        order=order.to(device),
        inverse=inverse.to(device),
        buckets=buckets,
        starts=_starts(buckets).to(device),
        subject_of=subject_of.to(device),
    )


def _subject_major(subject_of: Tensor, num_subjects: int) -> tuple[Tensor, tuple[Bucket, ...]]:
    """Tokens sorted by (sequence length, subject, packed position), and the runs of equal length."""
    lengths = torch.bincount(subject_of, minlength=num_subjects)
    key = lengths[subject_of] * num_subjects + subject_of
    order = torch.argsort(key, stable=True)
    buckets: list[Bucket] = []
    start = 0
    for length, count in zip(*(column.tolist() for column in torch.unique(lengths, return_counts=True)), strict=True):
        buckets.append(Bucket(start=start, num_subjects=count, length=length))
        start += count * length
    return order, tuple(buckets)


def _starts(buckets: tuple[Bucket, ...]) -> Tensor:
    lengths = [bucket.length for bucket in buckets for _ in range(bucket.num_subjects)]
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


class _Permutation(torch.autograd.Function):
    """Rows in a given order; its gradient is the inverse order, so no scatter-add is needed on any device."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types the context without it
        return gradients[0].index_select(0, inverse), None, None


def permute(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """rows[order] for a permutation `order` whose inverse is `inverse`; shapes [N, ...], [N], [N]."""
    permuted: Tensor = _Permutation.apply(rows, order, inverse)  # type: ignore[no-untyped-call]  # untyped in torch
    return permuted
