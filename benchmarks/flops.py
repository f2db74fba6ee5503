"""How many multiplications and additions of matrices a training step takes, by formula; a chip's matrix rate is held against it.

Counted is what the algorithm needs (a multiplication and an addition are 2): the teacher's forward pass, the student's, and two
of the student's for its gradients, one of the patch embedding, whose input needs none. Not counted are norms, activations and
the optimiser, nor what is computed a second time to save memory (checkpointing, FlashAttention), so that a step which does more
than it needs shows a lower share. `tests/benchmarks/test_flops.py` holds it against torch's own count of a real step.
Legend: E width, H hidden features of the MLP, A of an adapter, P of a predictor, N tokens, L tokens of one subject.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from panfm.config import ModelConfig
from panfm.pretrain.step import Masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """What a model encodes in one pass."""

    patches: int
    """Over all scans."""
    lengths: tuple[int, ...]
    """Tokens of each subject: its subject token, and for each organ an organ token and the patches."""

    @classmethod
    def of(cls, presence: Tensor, patches: Mapping[str, int]) -> Sequences:
        """From bool [B, O], which subject has which organ, and each organ's number of patches, in that order."""
        counts = presence.cpu().long()
        organs, own = counts.sum(1).tolist(), (counts * counts.new_tensor(list(patches.values()))).sum(1).tolist()
        return cls(patches=sum(own), lengths=tuple(1 + n + t for n, t in zip(organs, own, strict=True)))


def trunk_flops(model: ModelConfig, tokens: Sequences) -> int:
    """One forward pass through blocks and adapters."""
    width, count = model.width, sum(tokens.lengths)
    hidden, subjects = round(width * model.mlp_ratio), len(tokens.lengths)
    linear = 2 * count * (4 * width * width + 2 * width * hidden)
    attention = 4 * width * sum(length * length for length in tokens.lengths)
    adapters = 4 * (count - subjects) * width * model.adapter_width
    return model.depth * (linear + attention + adapters)


def embedding_flops(model: ModelConfig, tokens: Sequences) -> int:
    """Patches to tokens."""
    return int(2 * tokens.patches * model.patch**3 * model.width)


def saliency_flops(model: ModelConfig, tokens: Sequences, saliency_blocks: int) -> int:
    """The subject tokens' rows of the teacher's attention, computed beside it."""
    return int(2 * saliency_blocks * model.width * sum(tokens.lengths))


def step_flops(
    model: ModelConfig, presence: Tensor, masks: Masks, patches: Mapping[str, int], saliency_blocks: int
) -> int:
    """A whole step of the feature objective.

    Args:
        presence: bool [B, O]
        patches: organ -> patches of a scan, in the order of the columns.
    """
    presence = presence.cpu()
    given, seen = Sequences.of(presence, patches), Sequences.of(presence & ~masks.organs, patches)
    teacher = trunk_flops(model, given) + embedding_flops(model, given) + saliency_flops(model, given, saliency_blocks)
    predicted = seen.patches + _organs_asked(presence, masks.organs)
    heads = 4 * predicted * model.width * model.predictor_width
    return teacher + 3 * trunk_flops(model, seen) + 2 * embedding_flops(model, seen) + 3 * heads


def _organs_asked(presence: Tensor, hidden: Tensor) -> int:
    """How many organ tokens are predicted: the hidden ones, or, where none is, all of a subject's; of two organs or more."""
    several = presence.sum(1) >= 2
    asked = hidden.sum(1).where(hidden.any(1), presence.sum(1))
    return int(asked[several].sum())
