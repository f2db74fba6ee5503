"""The server's step and its teacher, against sites that really run their steps one by one."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.update import digest
from server.aggregation.server_step import follow, group_log_momentum, server_step

momenta = st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=8)
values = st.floats(-100, 100)


def _local_teacher(teacher: float, path: list[float], momenta: list[float]) -> float:
    for student, momentum in zip(path, momenta, strict=True):
        teacher = momentum * teacher + (1 - momentum) * student
    return teacher


@given(start=values, delta=values, rate=st.floats(0.01, 2))
def test_step_is_start_plus_rate_times_mean(start: float, delta: float, rate: float) -> None:
    stepped = server_step({"w": torch.tensor([start])}, {"w": torch.tensor([delta])}, rate)["w"]
    exact = torch.tensor([start]).item() + rate * torch.tensor([delta]).item()
    assert stepped.dtype == torch.float32
    assert stepped.item() == torch.tensor(exact, dtype=torch.float64).float().item()


@given(teacher=values, student=values, momenta=momenta)
def test_teacher_of_a_student_that_jumps_to_its_end(teacher: float, student: float, momenta: list[float]) -> None:
    """Exact oracle: a local student that stands at the new values from its first step on."""
    local = _local_teacher(teacher, [student] * len(momenta), momenta)
    log_momentum = group_log_momentum([len(momenta)] * 3, lambda n: sum(map(math.log, momenta[:n])))
    old, new = (torch.tensor([value], dtype=torch.float64) for value in (teacher, student))
    assert follow({"w": old}, {"w": new}, log_momentum)["w"].item() == pytest.approx(local, rel=1e-12, abs=1e-12)


@given(teacher=values, start=values, ends=st.lists(values, min_size=1, max_size=4), momenta=momenta)
def test_lead_over_local_teachers_on_straight_paths(
    teacher: float, start: float, ends: list[float], momenta: list[float]
) -> None:
    """Voters with equal steps on straight lines: the server's teacher leads the mean local one by a known multiple.

    With P the product of momenta and r the EMA, from 0, of the ramp 1/n, 2/n, ... 1, the lead is (1 - P - r) times the
    mean delta, because every step of both recursions is linear.
    """
    steps = len(momenta)
    ramp = [(i + 1) / steps for i in range(steps)]
    paths = [[start + (end - start) * part for part in ramp] for end in ends]
    mean_local = sum(_local_teacher(teacher, path, momenta) for path in paths) / len(paths)
    mean_delta = sum(end - start for end in ends) / len(ends)
    lead = 1 - math.prod(momenta) - _local_teacher(0.0, ramp, momenta)
    log_momentum = group_log_momentum([steps] * len(ends), lambda n: sum(map(math.log, momenta[:n])))
    old, new = (torch.tensor([value], dtype=torch.float64) for value in (teacher, start + mean_delta))
    served = follow({"w": old}, {"w": new}, log_momentum)["w"].item()
    assert served - mean_local == pytest.approx(lead * mean_delta, rel=1e-9, abs=1e-9)


def test_momentum_is_weighted_by_steps() -> None:
    # By hand, constant momentum .9: sites with 10 and 30 steps have log products 10 log .9 and 30 log .9; weighted by
    # steps their mean is (10 * 10 + 30 * 30) / 40 = 25 times log .9. A site that did no step changes nothing.
    assert group_log_momentum([10, 0, 30], lambda n: n * math.log(0.9)) == pytest.approx(25 * math.log(0.9))
    assert group_log_momentum([0, 0], lambda n: n * math.log(0.9)) == 0.0
    assert group_log_momentum([], lambda n: n * math.log(0.9)) == 0.0


def test_momentum_zero_and_one() -> None:
    old, new = {"w": torch.randn(5, generator=torch.Generator().manual_seed(1))}, {"w": torch.ones(5)}
    assert digest(follow(old, new, group_log_momentum([3], lambda n: -math.inf))) == digest(new)
    assert digest(follow(old, new, group_log_momentum([3], lambda n: 0.0))) == digest(old)


@given(value=st.floats(-(2.0**100), 2.0**100, width=32), log_momentum=st.floats(-50, 0))
def test_a_teacher_that_agrees_stays_bit_for_bit(value: float, log_momentum: float) -> None:
    same = {"w": torch.tensor([value])}
    assert torch.equal(follow(same, same, log_momentum)["w"], same["w"])


def test_inputs_are_left_unchanged_and_names_must_agree() -> None:
    student, delta = {"w": torch.ones(2)}, {"w": torch.full((2,), 0.5)}
    before = digest(student), digest(delta)
    server_step(student, delta, 1.0)
    follow(student, delta, -0.5)
    assert (digest(student), digest(delta)) == before
    with pytest.raises(ValueError, match="two sets of names"):
        server_step(student, {"v": torch.ones(2)}, 1.0)
    with pytest.raises(ValueError, match="two sets of names"):
        follow(student, {}, -0.5)
