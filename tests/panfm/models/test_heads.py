"""A predictor is LayerNorm, Linear, GELU, Linear; an organ is predicted from subject token plus query."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from panfm.models.pan_organ import PanOrganModel

MakeModel = Callable[..., PanOrganModel]


def test_predictors_by_their_formula(make_model: MakeModel) -> None:
    model = make_model()
    named = dict(model.heads.named_parameters())
    subjects = torch.randn(5, model.config.width, generator=torch.Generator().manual_seed(0))
    query = model.group("heart").query

    def formula(predictor: str, tokens: torch.Tensor) -> torch.Tensor:
        norm, first, last = (
            (named[f"{predictor}.layers.{n}.weight"], named[f"{predictor}.layers.{n}.bias"]) for n in (0, 1, 3)
        )
        centred = (tokens - tokens.mean(1, keepdim=True)) / (tokens.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return functional.gelu((centred * norm[0] + norm[1]) @ first[0].T + first[1]) @ last[0].T + last[1]

    assert torch.allclose(model.heads.patch_predictor(subjects), formula("patch_predictor", subjects), atol=1e-5)
    expected = formula("organ_predictor", subjects + query)
    assert torch.allclose(model.heads.predict_organ(subjects, query), expected, atol=1e-5)


def test_a_prediction_depends_on_subject_and_on_organ(make_model: MakeModel) -> None:
    model = make_model()
    subjects = torch.randn(2, model.config.width, generator=torch.Generator().manual_seed(0))
    heart = model.heads.predict_organ(subjects, model.group("heart").query)
    brain = model.heads.predict_organ(subjects, model.group("brain").query)
    assert not torch.allclose(heart, brain, atol=1e-3)
    assert not torch.allclose(heart[0], heart[1], atol=1e-3)
