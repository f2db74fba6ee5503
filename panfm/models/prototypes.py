"""The prototype head: a token to its likeness with each of K prototypes, and the centres that those likenesses are taken from.

One head serves subject tokens and patch tokens, as in iBOT. The centres are means of the *teacher's* logits. They stand here,
as parameters without a gradient, because what is no parameter would neither travel nor be averaged: a site holds no state of
its own, and the coordinator's weighted mean of centres is the centre of all sites' subjects together.
Source: Caron et al. 2021 (DINO), arXiv:2104.14294; Zhou et al. 2022 (iBOT), arXiv:2111.07832.
Legend: E width, K prototypes, D bottleneck.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.models.precision import full_precision

BOTTLENECK = 256
"""Features in which prototypes are compared, or the model's width if that is less; of DINO and iBOT."""


class PrototypeHead(nn.Module):
    """Three maps with GELU between them, a sphere, and K directions on it; [..., E] to cosines [..., K]."""

    def __init__(self, width: int, hidden: int, prototypes: int) -> None:
        super().__init__()
        bottleneck = min(BOTTLENECK, width)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, bottleneck)
        self.weight = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.subject_centre = nn.Parameter(torch.empty(prototypes), requires_grad=False)
        self.patch_centre = nn.Parameter(torch.empty(prototypes), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Cosines, fp32; a weight-normed map whose gain is 1 for good, for a gain could sharpen without end."""
        hidden = functional.gelu(self.second(functional.gelu(self.first(tokens))))
        points = functional.normalize(self.third(hidden).float(), dim=-1)
        with full_precision(points):  # a cosine rounded to bf16 is off by 0.002, and is divided by 0.04
            return functional.linear(points, functional.normalize(self.weight.float(), dim=-1))
