"""The loss is smooth-L1 to LayerNorm-ed targets, token by token, and no gradient reaches the targets."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
import torch

from panfm.pretrain.feature_loss import feature_loss, normalised


def test_formula_element_by_element() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, target = 2 * torch.randn(2, 3, 4, 6, generator=generator)
    losses = feature_loss(predicted, target)
    assert losses.shape == (3, 4)
    for row in range(3):
        for token in range(4):
            away = [
                abs(p - t) for p, t in zip(predicted[row, token].tolist(), target[row, token].tolist(), strict=True)
            ]
            expected = sum(d * d / 2 if d < 1 else d - 0.5 for d in away) / 6
            assert float(losses[row, token]) == pytest.approx(expected, rel=1e-5)


def test_targets_have_mean_0_and_variance_1_per_token() -> None:
    features = 5 + 3 * torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    points = normalised(features)
    expected = (features - features.mean(1, keepdim=True)) / (
        features.var(1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    assert torch.allclose(points, expected, atol=1e-5)
    assert torch.allclose(points.mean(1), torch.zeros(7), atol=1e-6)
    assert normalised(features.half()).dtype == torch.float32


def test_no_gradient_reaches_the_target() -> None:
    predicted, target = torch.zeros(4, requires_grad=True), torch.full((4,), 0.5, requires_grad=True)
    torch.autograd.backward(feature_loss(predicted, target))
    assert target.grad is None
    assert predicted.grad is not None
    assert predicted.grad.tolist() == pytest.approx([-0.125] * 4)  # (p - t) / features
