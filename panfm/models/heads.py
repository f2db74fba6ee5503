"""Mask token and predictors: what only pre-training needs, shared by all sites.

`mask_token` stands where a patch is hidden from the student; `patch_predictor` turns the student's token of a
patch, hidden or seen, into the teacher's feature of it; `organ_predictor` turns a subject token and an organ's query into the
teacher's token of that organ. `prototypes` and `decoder` are there only when the model's settings ask for them.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from panfm.config import ModelConfig
from panfm.models.decoder import Decoder
from panfm.models.prototypes import PrototypeHead


class Predictor(nn.Module):
    """LN(x) + out(gelu(hidden(norm(x)))) on [..., E], with LN without affine, as in the targets; `out` starts at zero.

    A fresh predictor therefore hands on its normalised token, and training starts from "what you see is what the teacher sees"
    instead of from noise: in a first trial 100 steps of batch 8 gave the probe of 150 steps of batch 16 (DECISIONS.md, 12).
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        change: Tensor = self.out(functional.gelu(self.hidden(self.norm(tokens))))
        return functional.layer_norm(tokens, tokens.shape[-1:]) + change


class Heads(nn.Module):
    """The group `heads`."""

    def __init__(self, config: ModelConfig, checkpointing: bool = False) -> None:
        super().__init__()
        width, hidden = config.width, config.predictor_width
        self.mask_token = nn.Parameter(torch.empty(width))
        self.patch_predictor = Predictor(width, hidden)
        self.organ_predictor = Predictor(width, hidden)
        self.prototypes: PrototypeHead | None = None
        self.decoder: Decoder | None = None
        if config.prototypes:
            self.prototypes = PrototypeHead(width, hidden, config.prototypes)
        if config.decoder_depth:
            inner = round(width * config.mlp_ratio)
            depth, voxels = config.decoder_depth, config.patch**3
            self.decoder = Decoder(width, depth, config.heads, inner, voxels, checkpointing)

    def predict_organ(self, subject_tokens: Tensor, query: Tensor) -> Tensor:
        """The teacher's token of an organ, from [n, E] subject tokens and the organ's query [E]."""
        out: Tensor = self.organ_predictor(subject_tokens + query)
        return out
