"""The clipped sum of a step: what each subject may add to it is bounded, whatever the subject's data.

Norms are taken in fp32 or better, over all parameters, of the very numbers that enter the sum: of gradients in bf16, norms taken
in bf16 let through 1.006 times the clip norm. A subject whose gradient is not finite adds nothing, like a null record. A
large sample arrives in parts; noise is added once, at the end, to every parameter, also to those that no subject touched.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from panfm.privacy.noise import all_noised

_ROUNDING = 1.0 - 2.0**-20
"""Of the bound: rounding the scaled gradient to fp32 adds up to 2**-24 of it, and must not lead above the clip norm."""

_BLOCK = 2**17
"""Numbers that are worked on at a time."""


def row_norms(rows: Mapping[str, Tensor]) -> Tensor:
    """Norm of each subject's gradient over all parameters, in double precision. Shape (B,).

    Args:
        rows: parameter -> gradients (B, ...), one row a subject, of any floating dtype.
    """
    squares = [
        torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).square()
        for tensor in rows.values()
        for part in _parts(_flat(tensor))
    ]
    return torch.stack(squares).sum(0).sqrt()


def clip_factors(norms: Tensor, clip_norm: float) -> Tensor:
    """By what each subject's gradient is multiplied so that its norm is at most the clip norm; 0 where it is not finite."""
    factors = (clip_norm * _ROUNDING / norms.clamp(min=torch.finfo(torch.float32).tiny)).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


def _flat(rows: Tensor) -> Tensor:
    """One row a subject, in fp32: the numbers that enter the sum."""
    return rows.detach().float().reshape(rows.shape[0], math.prod(rows.shape[1:]))


def _parts(flat: Tensor) -> Sequence[Tensor]:
    """The columns of (B, P) in blocks that stay in a processor's cache: whole, a pass over 200 MB takes three times as long."""
    return torch.split(flat, max(1, _BLOCK // max(1, flat.shape[0])), dim=1)


class ClippedSum:
    """The sum over the subjects of one step; it owns the sum until that is released, once."""

    def __init__(self, like: Mapping[str, Tensor], clip_norm: float) -> None:
        """Begin at zero.

        Args:
            like: every parameter that is trained; the sum has their shapes and devices, in fp32.
        """
        if not clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
        self._sums = {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in like.items()}
        self._clip_norm = clip_norm
        self._seen: set[int] = set()
        self._is_released = False

    def add(self, rows: Mapping[str, Tensor], subjects: Sequence[int]) -> None:
        """Add a part of the sample.

        Args:
            rows: parameter -> gradients (B, ...), one row a subject; a parameter that is left out adds nothing.
            subjects: who the rows are of.
        Raises: ValueError when rows are not subjects, a subject comes twice, or a parameter is unknown or misshapen.
        """
        self._check(rows, subjects)
        self._seen.update(subjects)
        if not rows or not subjects:
            return
        norms = row_norms(rows)
        counts = torch.isfinite(norms)
        factors = clip_factors(norms, self._clip_norm).float()[counts, None]
        is_whole = bool(counts.all())
        for name, tensor in rows.items():
            flat = _flat(tensor) if is_whole else _flat(tensor)[counts]
            # No matrix product, which a GPU may round to ten bits.
            clipped = torch.cat([(part * factors).sum(0) for part in _parts(flat)])
            self._sums[name] += clipped.reshape(self._sums[name].shape)

    def release(self, noise_multiplier: float, denominator: float) -> dict[str, Tensor]:
        """The noised mean gradient of every parameter. Once: noise drawn twice for one sum can be averaged away.

        Args:
            denominator: a public constant, and never the size of the sample.
        Raises: ValueError when it has been released before, or the noise or the denominator is not above 0.
        """
        if self._is_released:
            raise ValueError("this sum was released; a second release would be charged again")
        if not denominator > 0:
            raise ValueError(f"the denominator must be above 0, got {denominator}")
        self._is_released = True
        released = all_noised(self._sums, noise_multiplier * self._clip_norm)
        self._sums = {}
        return {name: tensor / denominator for name, tensor in released.items()}

    def _check(self, rows: Mapping[str, Tensor], subjects: Sequence[int]) -> None:
        if self._is_released:
            raise ValueError("this sum was released; begin a new one for the next step")
        if len(set(subjects)) != len(subjects) or self._seen.intersection(subjects):
            raise ValueError("a subject comes twice in one step; all of its views belong into one row, before the clip")
        if unknown := rows.keys() - self._sums.keys():
            raise ValueError(f"the sum does not know {sorted(unknown)[0]!r}; begin it with every trained parameter")
        for name, tensor in rows.items():
            expected = (len(subjects), *self._sums[name].shape)
            if tensor.shape != expected:
                raise ValueError(f"{name} should have one row a subject, {expected}, got {tuple(tensor.shape)}")
