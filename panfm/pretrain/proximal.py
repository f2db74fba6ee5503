"""FedProx: a pull of the student towards the model that the round began with, so that sites with different organs and
scanners drift apart less between two averages.

It is the gradient of mu / 2 * |w - w0|^2, added to that of the loss; the loss that a site tells stays the loss alone.
Source: Li et al. 2020, arXiv:1812.06127, equation 2. AdamW divides a gradient by its own size, so beside it mu says how much
of the direction the pull has, not how long a step is.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn


def anchor_of(model: nn.Module) -> list[Tensor]:
    """Where the parameters stand now, in the order of `model.parameters()`, on their device."""
    return [parameter.detach().clone() for parameter in model.parameters()]


@torch.no_grad()
def pull_towards(model: nn.Module, anchor: list[Tensor], mu: float) -> None:
    """Add mu * (parameter - anchor) to each gradient that there is; a parameter without one has not moved."""
    for parameter, start in zip(model.parameters(), anchor, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - start, alpha=mu)
