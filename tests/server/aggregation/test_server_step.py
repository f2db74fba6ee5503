"""The server's step and its teacher, against sites that really run their steps one by one and against other libraries."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvg, FedYogi
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import ServerOptimiser, ServerStepConfig
from panfm.randomness import stream
from server.aggregation.server_step import MOMENTS, direction, follow, group_log_momentum, start_of, stepped

momenta = st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=8)
values = st.floats(-100, 100)


def _local_teacher(teacher: float, path: list[float], momenta: list[float]) -> float:
    for student, momentum in zip(path, momenta, strict=True):
        teacher = momentum * teacher + (1 - momentum) * student
    return teacher


@given(start=values, delta=values, rate=st.floats(0.01, 2))
def test_step_is_start_plus_rate_times_mean(start: float, delta: float, rate: float) -> None:
    moved = stepped(torch.tensor([start]), torch.tensor([delta]), rate)
    exact = torch.tensor([start]).item() + rate * torch.tensor([delta]).item()
    assert moved.dtype == torch.float32
    assert moved.item() == torch.tensor(exact, dtype=torch.float64).float().item()


@given(teacher=values, student=values, momenta=momenta)
def test_teacher_of_a_student_that_jumps_to_its_end(teacher: float, student: float, momenta: list[float]) -> None:
    """Exact oracle: a local student that stands at the new values from its first step on."""
    local = _local_teacher(teacher, [student] * len(momenta), momenta)
    log_momentum = group_log_momentum([len(momenta)] * 3, lambda n: sum(map(math.log, momenta[:n])))
    old, new = (torch.tensor([value], dtype=torch.float64) for value in (teacher, student))
    assert follow(old, new, log_momentum).item() == pytest.approx(local, rel=1e-12, abs=1e-12)


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
    served = follow(old, new, log_momentum).item()
    assert served - mean_local == pytest.approx(lead * mean_delta, rel=1e-9, abs=1e-9)


def test_momentum_is_weighted_by_steps() -> None:
    # By hand, constant momentum .9: sites with 10 and 30 steps have log products 10 log .9 and 30 log .9; weighted by
    # steps their mean is (10 * 10 + 30 * 30) / 40 = 25 times log .9. A site that did no step changes nothing.
    assert group_log_momentum([10, 0, 30], lambda n: n * math.log(0.9)) == pytest.approx(25 * math.log(0.9))
    assert group_log_momentum([0, 0], lambda n: n * math.log(0.9)) == 0.0
    assert group_log_momentum([], lambda n: n * math.log(0.9)) == 0.0


def test_momentum_zero_and_one() -> None:
    old, new = torch.randn(5, generator=torch.Generator().manual_seed(1)), torch.ones(5)
    assert torch.equal(follow(old, new, group_log_momentum([3], lambda n: -math.inf)), new)
    assert torch.equal(follow(old, new, group_log_momentum([3], lambda n: 0.0)), old)


@given(value=st.floats(-(2.0**100), 2.0**100, width=32), log_momentum=st.floats(-50, 0))
def test_a_teacher_that_agrees_stays_bit_for_bit(value: float, log_momentum: float) -> None:
    same = torch.tensor([value])
    assert torch.equal(follow(same, same, log_momentum), same)


# The server's optimisers, each over several rounds.

configs = st.builds(
    ServerStepConfig,
    optimiser=st.sampled_from(ServerOptimiser),
    rate=st.floats(0.001, 2),
    momentum=st.floats(0, 0.99),
    second_momentum=st.floats(0, 0.999),
    adaptivity=st.floats(1e-4, 1),
)
rounds = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6)


def _run(start: Tensor, deltas: list[Tensor], config: ServerStepConfig) -> Tensor:
    """The student after these mean deltas, all in fp64."""
    moments = [torch.full_like(start, start_of(kind, config)) for kind in MOMENTS[config.optimiser]]
    student = start
    for delta in deltas:
        along, moments = direction(delta, moments, config)
        student = stepped(student, along, config.rate)
    return student


def _by_hand(x: float, deltas: list[float], config: ServerStepConfig) -> float:
    """One coordinate, as the papers' algorithms read."""
    b1, b2, tau, eta = config.momentum, config.second_momentum, config.adaptivity, config.rate
    m, v = 0.0, tau * tau
    for d in deltas:
        match config.optimiser:
            case ServerOptimiser.fedavg:
                x = x + eta * d
            case ServerOptimiser.fedavgm:
                m = b1 * m + d
                x = x + eta * m
            case ServerOptimiser.fedadam:
                m = b1 * m + (1 - b1) * d
                v = b2 * v + (1 - b2) * d * d
                x = x + eta * m / (math.sqrt(v) + tau)
            case ServerOptimiser.fedyogi:
                m = b1 * m + (1 - b1) * d
                sign = (v > d * d) - (v < d * d)
                v = v - (1 - b2) * d * d * sign
                x = x + eta * m / (math.sqrt(v) + tau)
    return x


@given(start=values, deltas=rounds, config=configs)
def test_optimisers_are_the_papers_algorithms(start: float, deltas: list[float], config: ServerStepConfig) -> None:
    found = _run(
        torch.tensor([start], dtype=torch.float64), [torch.tensor([d], dtype=torch.float64) for d in deltas], config
    )
    assert found.item() == pytest.approx(_by_hand(start, deltas, config), rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 99), momentum=st.floats(0, 0.99), rate=st.floats(0.01, 2))
def test_fedavgm_is_torchs_sgd_with_the_mean_delta_as_downhill(seed: int, momentum: float, rate: float) -> None:
    draws = torch.from_numpy(stream(seed, "rounds").normal(size=(5, 4)))
    parameter = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))
    sgd = torch.optim.SGD([parameter], lr=rate, momentum=momentum)
    for delta in draws:
        parameter.grad = -delta
        sgd.step()
    config = ServerStepConfig(optimiser=ServerOptimiser.fedavgm, momentum=momentum, rate=rate)
    found = _run(torch.ones(4, dtype=torch.float64), list(draws), config)
    torch.testing.assert_close(found, parameter.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("optimiser", "strategy"), [("fedadam", FedAdam), ("fedyogi", FedYogi)])
def test_adaptive_steps_are_flowers(
    optimiser: str, strategy: type[FedAdam] | type[FedYogi], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower starts v at 0 where the paper has tau^2, and corrects Adam's start by the number of the round: both are set
    aside here, by giving it the paper's start and a round far from the start."""
    config = ServerStepConfig(optimiser=ServerOptimiser[optimiser], rate=0.05, adaptivity=0.01)
    draws = stream(5, optimiser).normal(size=(6, 8)) * 0.1
    flower = strategy(eta=config.rate, beta_1=config.momentum, beta_2=config.second_momentum, tau=config.adaptivity)
    flower.v_t = {"w": np.full(8, config.adaptivity**2)}
    current = np.ones(8)
    for delta in draws:
        averaged = ArrayRecord({"w": Array(current + delta)})
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, averaged=averaged: (averaged, None))
        flower.current_arrays = {"w": current}
        arrays, _ = flower.aggregate_train(10**6, [])
        assert arrays is not None
        current = arrays["w"].numpy()
    found = _run(torch.ones(8, dtype=torch.float64), list(torch.from_numpy(draws)), config)
    np.testing.assert_allclose(found.numpy(), current, rtol=1e-9)


def test_a_steady_mean_moves_as_the_settings_say() -> None:
    """As `ServerStepConfig.rate` promises: FedAvgM by 1 / (1 - momentum) times the mean, FedAdam and FedYogi by the rate."""
    steady = torch.tensor([0.3, -0.3], dtype=torch.float64)
    for optimiser, expected in (("fedavg", 0.3), ("fedavgm", 3.0), ("fedadam", 1.0), ("fedyogi", 1.0)):
        config = ServerStepConfig(optimiser=ServerOptimiser[optimiser], adaptivity=1e-6)
        before, after = (_run(torch.zeros(2, dtype=torch.float64), [steady] * n, config) for n in (2000, 2001))
        # Yogi's mean square steps around the square of the mean by one part in a hundred, and so does the step.
        assert (after - before).tolist() == pytest.approx([expected, -expected], rel=1e-2)


@given(seed=st.integers(0, 99), config=configs, cut=st.integers(1, 7))
def test_blocks_move_as_the_whole_does(seed: int, config: ServerStepConfig, cut: int) -> None:
    deltas = [torch.from_numpy(row) for row in stream(seed, "rounds").normal(size=(3, 8))]
    start = torch.ones(8, dtype=torch.float64)
    parts = [_run(start[part], [delta[part] for delta in deltas], config) for part in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(torch.cat(parts), _run(start, deltas, config), rtol=0, atol=0)


@pytest.mark.parametrize("optimiser", ServerOptimiser)
def test_inputs_are_left_unchanged(optimiser: ServerOptimiser) -> None:
    config = replace(ServerStepConfig(), optimiser=optimiser)
    student, delta = torch.ones(2, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    moments = [torch.full((2,), 0.25, dtype=torch.float64) for _ in MOMENTS[optimiser]]
    along, _ = direction(delta, moments, config)
    follow(student, stepped(student, along, 1.0), -0.5)
    assert (student.tolist(), delta.tolist()) == ([1.0, 1.0], [0.5, 0.5])
    assert all(moment.tolist() == [0.25, 0.25] for moment in moments)
