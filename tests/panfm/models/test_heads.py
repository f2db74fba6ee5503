"""A predictor adds LayerNorm, Linear, GELU, Linear to its normalised input; an organ is predicted from subject plus query."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from panfm.config import ModelConfig, OrganGrid
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel

MakeModel = Callable[..., PanOrganModel]
Grids = dict[str, OrganGrid]


def _centred(tokens: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1, by the formula."""
    return (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_predictors_by_their_formula(make_model: MakeModel) -> None:
    model = make_model()
    named = dict(model.heads.named_parameters())
    subjects = 3 * torch.randn(5, model.config.width, generator=torch.Generator().manual_seed(0)) + 1
    query = model.group("heart").query

    def formula(predictor: str, tokens: Tensor) -> Tensor:
        norm, first, last = (
            (named[f"{predictor}.{part}.weight"], named[f"{predictor}.{part}.bias"])
            for part in ("norm", "hidden", "out")
        )
        x = (_centred(tokens) * norm[0] + norm[1]) @ first[0].T + first[1]
        gelu = x * (1 + torch.erf(x / 2**0.5)) / 2
        return _centred(tokens) + gelu @ last[0].T + last[1]

    assert torch.allclose(model.heads.patch_predictor(subjects), formula("patch_predictor", subjects), atol=1e-5)
    expected = formula("organ_predictor", subjects + query)
    assert torch.allclose(model.heads.predict_organ(subjects, query), expected, atol=1e-5)


def test_a_fresh_predictor_hands_on_what_it_gets_as_a_target_would_be(config: ModelConfig, grids: Grids) -> None:
    """So a student that equals its teacher, and sees what it sees, starts with a loss of zero."""
    model = build_model(config, grids)
    load_parameters(model, initial_parameters(config, grids, 0))
    tokens = 3 * torch.randn(5, config.width, generator=torch.Generator().manual_seed(0)) + 1
    query = model.group("heart").query
    assert torch.allclose(model.heads.patch_predictor(tokens), _centred(tokens), atol=1e-5)
    assert torch.allclose(model.heads.predict_organ(tokens, query), _centred(tokens + query), atol=1e-5)


def test_a_prediction_depends_on_subject_and_on_organ(make_model: MakeModel) -> None:
    model = make_model()
    subjects = torch.randn(2, model.config.width, generator=torch.Generator().manual_seed(0))
    heart = model.heads.predict_organ(subjects, model.group("heart").query)
    brain = model.heads.predict_organ(subjects, model.group("brain").query)
    assert not torch.allclose(heart, brain, atol=1e-3)
    assert not torch.allclose(heart[0], heart[1], atol=1e-3)
