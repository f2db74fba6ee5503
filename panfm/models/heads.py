"""Predictors and projections: what only pre-training needs, shared by all sites.

`mask_token` stands where a patch is hidden from the student; `patch_predictor` turns a masked position into the teacher's
feature of it; `organ_predictor` turns a subject token and an organ's query into the teacher's token of that organ.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn


class Predictor(nn.Module):
    """LayerNorm, Linear, GELU, Linear on [..., E]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layers(tokens)
        return out


class Heads(nn.Module):
    """The group `heads`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width))
        self.patch_predictor = Predictor(width, hidden)
        self.organ_predictor = Predictor(width, hidden)

    def predict_organ(self, subject_tokens: Tensor, query: Tensor) -> Tensor:
        """The teacher's token of an organ, from [n, E] subject tokens and the organ's query [E]."""
        out: Tensor = self.organ_predictor(subject_tokens + query)
        return out
