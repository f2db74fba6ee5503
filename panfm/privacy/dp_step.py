"""One step of subject-level DP-SGD: a sample of subjects in, one noised mean gradient out.

Each subject adds one gradient, the mean over all of its organs, visits and views, clipped once. The sample comes in physical
batches that fit into memory, whose clipped sums add up; noise is drawn once, for every trained parameter, and the result is
divided by a public constant. A sample that holds nobody gives noise, and its step counts like any other.
Source: Abadi et al. 2016, arXiv:1607.00133.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from panfm.config import PrivacyConfig
from panfm.privacy.clipping import ClippedSum

Chunk = tuple[Sequence[int], Callable[[], Mapping[str, Tensor]]]
"""Some subjects of a sample, and what computes their gradients: parameter -> [B, ...], one row a subject."""


def noised_mean(chunks: Iterable[Chunk], trained: Mapping[str, Tensor], privacy: PrivacyConfig) -> dict[str, Tensor]:
    """What a step may use of its sample, and the only thing that leaves it.

    Args:
        chunks: the sample; each subject is in one of them, once.
        trained: every parameter that is trained, whether or not a subject of the sample touched it.
    """
    clipped = ClippedSum(trained, privacy.clip_norm)
    for subjects, rows in chunks:
        clipped.add(rows(), subjects)
    return clipped.release(privacy.noise_multiplier, privacy.denominator)


def mean_of_views(views: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One gradient a subject from those of several views of it, before anything is clipped; rows are [B, ...] of one order."""
    first, *others = views
    if not others:
        return dict(first)
    return {name: sum((view[name] for view in others), start=rows) / len(views) for name, rows in first.items()}
