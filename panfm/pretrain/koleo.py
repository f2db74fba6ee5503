"""KoLeo: what spreads a batch of subject tokens over the sphere; an optional term beside prototypes.

It is an estimate of minus the entropy of the batch's distribution by Kozachenko and Leonenko. Neighbours are of one batch, so it
couples subjects: never with privacy.
Source: Sablayrolles et al. 2019, "Spreading vectors for similarity search", arXiv:1806.03198; DINOv2 gives it weight 0.1.
Legend: B subjects, E width.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from panfm.models.precision import full_precision


def koleo_loss(embeddings_BE: Tensor, eps: float = 1e-8) -> Tensor:
    """Push each embedding away from its nearest neighbour: -mean over i of log(|z_i - z_nearest(i)| + eps).

    Args:
        embeddings_BE: raw or L2-normalised embeddings, [B, E]; normalised and computed in fp32.
        eps: keeps identical twins finite; they get no gradient, for there is no direction to push them in.
    Returns: fp32 scalar, nats.
    Raises: ValueError when B < 2: one point has no neighbour.
    """
    if len(embeddings_BE) < 2:
        raise ValueError(f"one point has no neighbour: expected 2 embeddings or more, got {len(embeddings_BE)}")
    points = functional.normalize(embeddings_BE.float(), dim=-1)
    with torch.no_grad(), full_precision(points):
        likeness = (points @ points.T).fill_diagonal_(-2.0)  # below any cosine: nobody is its own neighbour
        nearest = likeness.argmax(1)
    # The neighbour's own index, so that the gradient reaches both ends of each pair.
    return -torch.log((points - points[nearest]).norm(dim=1) + eps).mean()
