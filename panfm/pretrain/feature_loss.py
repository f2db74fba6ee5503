"""The default objective: regress the teacher's normalised features.

Targets are the teacher's outputs, normalised over features of each token (LayerNorm without affine); the loss is smooth-L1,
averaged over features here, and over a scan's hidden or seen patches, a subject's organs and the subjects of a batch in
`step`. No statistic of a batch enters, so sites with different batch sizes optimise the same thing and a subject's gradient
depends on no other subject.
Source: data2vec (Baevski et al. 2022, arXiv:2202.03555) for the targets; I-JEPA (Assran et al. 2023, arXiv:2301.08243).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def normalised(features: Tensor) -> Tensor:
    """Each token's features with mean 0 and variance 1, [..., E] in fp32."""
    return functional.layer_norm(features.float(), features.shape[-1:])


def feature_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth-L1 (beta 1) between predictions and normalised targets, mean over features.

    Args:
        predicted: [..., E].
        target: [..., E], already `normalised`; no gradient flows into it.
    Returns: fp32 [...].
    """
    return functional.smooth_l1_loss(predicted.float(), target.detach(), reduction="none").mean(-1)
