"""The cross-entropy of assignments by the papers' formulas in loops and float64, and where its value is known."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.pretrain.prototype_loss import assignments, moved_centre, prototype_loss


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def _by_loops(student: Tensor, teacher: Tensor, centre: Tensor, tau_s: float, tau_t: float) -> list[float]:
    """-sum_k P_t(k) log P_s(k), with P_t = softmax((t - c) / tau_t) and P_s = softmax(s / tau_s), token by token."""
    losses = []
    for s, t in zip(student.double().tolist(), teacher.double().tolist(), strict=True):
        wanted = _softmax([(value - middle) / tau_t for value, middle in zip(t, centre.tolist(), strict=True)])
        own = _softmax([value / tau_s for value in s])
        losses.append(-sum(p * math.log(q) for p, q in zip(wanted, own, strict=True)))
    return losses


def _cosines(seed: int, *shape: int) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


@given(seed=st.integers(0, 50), k=st.integers(2, 20), tau_s=st.floats(0.05, 1.0), tau_t=st.floats(0.02, 1.0))
def test_by_the_formula(seed: int, k: int, tau_s: float, tau_t: float) -> None:
    student, teacher, centre = _cosines(seed, 4, k), _cosines(seed + 100, 4, k), 0.3 * _cosines(seed + 200, k)
    found = prototype_loss(student, assignments(teacher, centre, tau_t), tau_s)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(_by_loops(student, teacher, centre, tau_s, tau_t), rel=1e-4, abs=1e-5)


def test_uniform_assignments_cost_ln_k_and_the_same_prototype_for_all_nothing() -> None:
    flat, peak = torch.zeros(3, 50), torch.nn.functional.one_hot(torch.full((3,), 7), 50).float()
    no_centre = torch.zeros(50)
    assert prototype_loss(flat, assignments(flat, no_centre, 0.04), 0.1).tolist() == pytest.approx([math.log(50)] * 3)
    alike = prototype_loss(peak, assignments(peak, no_centre, 0.02), 0.02)
    assert float(alike.max()) < 1e-6
    # What all have in common the centre takes away, whatever it is.
    assert torch.allclose(assignments(peak, peak[0], 0.04), torch.full((3, 50), 1 / 50))


def test_assignments_give_no_gradient() -> None:
    teacher = torch.zeros(2, 5, requires_grad=True)
    assert not assignments(teacher, torch.zeros(5), 0.1).requires_grad


@given(seed=st.integers(0, 50), steps=st.integers(1, 30), momentum=st.floats(0.0, 1.0))
def test_a_centre_after_k_steps(seed: int, steps: int, momentum: float) -> None:
    """c_k = m^k c_0 + (1 - m) sum over j of m^(k - j) x_j."""
    means, start = _cosines(seed, steps, 6).double(), _cosines(seed + 1, 6).double()
    found = start
    for mean in means:
        found = moved_centre(found, mean, momentum)
    shares = [(1 - momentum) * momentum ** (steps - number) for number in range(1, steps + 1)]
    expected = momentum**steps * start + sum(share * mean for share, mean in zip(shares, means, strict=True))
    assert torch.allclose(found, expected, atol=1e-12)
