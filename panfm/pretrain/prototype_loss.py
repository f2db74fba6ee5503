"""Cross-entropy between the student's and the teacher's assignments to prototypes: DINO on subject tokens, iBOT on patches.

Two things keep assignments from becoming all the same, and each prevents what the other would bring about: the centre, a mean
of the teacher's logits, takes away what all tokens have in common, so that no single prototype wins everywhere; the
teacher's low temperature keeps its assignments from becoming uniform. A loss that stands at ln K is the sign of the second
collapse, one near 0 of the first. The centre couples the subjects of a batch, so this objective cannot be had with
privacy.
Source: Caron et al. 2021 (DINO), arXiv:2104.14294, equation 1, section 3.1 and equation 4; Zhou et al. 2022 (iBOT),
arXiv:2111.07832, equation 2.
Legend: B subjects, K prototypes.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def assignments(teacher_logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """The teacher's, sharpened and centred: softmax((logits - centre) / temperature).

    Args:
        teacher_logits: [..., K].
        centre: [K], of the steps before this one.
    Returns: fp32 [..., K], each row summing to 1; no gradient.
    """
    return functional.softmax((teacher_logits.float() - centre.float()) / temperature, dim=-1)


def prototype_loss(student_logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each token: -sum over k of wanted_k log softmax(logits / temperature)_k.

    Args:
        student_logits: [..., K].
        wanted: `assignments`, [..., K].
    Returns: fp32 [...], nats: ln K where both are uniform.
    """
    return -(wanted * functional.log_softmax(student_logits.float() / temperature, dim=-1)).sum(-1)


def moved_centre(centre: Tensor, mean_logits: Tensor, momentum: float) -> Tensor:
    """momentum * centre + (1 - momentum) * the batch's mean of the teacher's logits; [K]."""
    return momentum * centre + (1 - momentum) * mean_logits
