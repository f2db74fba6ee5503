"""KoLeo by its formula in loops, where its value is known, and which way it pushes."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.pretrain.koleo import koleo_loss


def _by_loops(embeddings: list[list[float]]) -> float:
    points = [[x / math.hypot(*row) for x in row] for row in embeddings]
    nearest = [min(math.dist(one, other) for j, other in enumerate(points) if j != i) for i, one in enumerate(points)]
    return -sum(math.log(distance) for distance in nearest) / len(points)


@given(seed=st.integers(0, 99), rows=st.integers(2, 12))
def test_by_the_formula(seed: int, rows: int) -> None:
    embeddings = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))
    assert float(koleo_loss(embeddings)) == pytest.approx(_by_loops(embeddings.double().tolist()), rel=1e-3, abs=1e-3)


def test_where_its_value_is_known() -> None:
    x, y = torch.eye(3)[:2]
    assert float(koleo_loss(torch.stack((3 * x, -x)))) == pytest.approx(-math.log(2))
    assert float(koleo_loss(torch.stack((x, 5 * y)))) == pytest.approx(-math.log(2) / 2)


def test_twins_are_finite_and_one_alone_is_refused() -> None:
    twins = torch.ones(2, 4, requires_grad=True)
    loss = koleo_loss(twins)
    torch.autograd.backward(loss)
    assert float(loss.detach()) == pytest.approx(-math.log(1e-8), rel=1e-5)
    assert twins.grad is not None
    assert bool(torch.isfinite(twins.grad).all())
    with pytest.raises(ValueError, match="no neighbour"):
        koleo_loss(torch.ones(1, 4))


def test_a_step_along_it_spreads_the_batch() -> None:
    points = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = koleo_loss(points)
    torch.autograd.backward(before)
    assert points.grad is not None
    assert float(koleo_loss(points.detach() - 0.05 * points.grad)) < float(before.detach())
