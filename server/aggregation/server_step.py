"""The coordinator's own step in one group: the student moves along the mean delta, the EMA teacher follows it.

Plain FedAvg is the step at rate 1. FedAvgM, FedAdam and FedYogi keep moments of the mean deltas, parameter by parameter, so
that a group which stays as it was keeps its moments too. Every function is elementwise: it may be given a tensor or any
block of it. Arithmetic is done in fp64 and rounded once to the dtype of what it returns.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from panfm.config import ServerOptimiser, ServerStepConfig

MOMENTS: dict[ServerOptimiser, tuple[str, ...]] = {
    ServerOptimiser.fedavg: (),
    ServerOptimiser.fedavgm: ("first",),
    ServerOptimiser.fedadam: ("first", "second"),
    ServerOptimiser.fedyogi: ("first", "second"),
}
"""What each optimiser remembers of every parameter, in this order."""


def start_of(moment: str, config: ServerStepConfig) -> float:
    """The value of a moment before the first step: 0, and for the mean square adaptivity ** 2, as in the paper."""
    return config.adaptivity**2 if moment == "second" else 0.0


def direction(mean_delta: Tensor, moments: Sequence[Tensor], config: ServerStepConfig) -> tuple[Tensor, list[Tensor]]:
    """Where the student goes, and the next moments.

    With D the mean delta, b1 and b2 the momenta and t the adaptivity:

    - fedavg: D.
    - fedavgm: m = b1 m + D; m. Source: Hsu et al. 2019, arXiv:1909.06335.
    - fedadam: m = b1 m + (1 - b1) D; v = b2 v + (1 - b2) D^2; m / (sqrt v + t).
    - fedyogi: the same with v = v - (1 - b2) D^2 sign(v - D^2).
      Source: Reddi et al. 2021, arXiv:2003.00295, algorithm 2; no correction of the start, v starts at t^2.

    Args:
        mean_delta: fp64.
        moments: those that `MOMENTS` names, any floating dtype, same shape.
    Returns: both in fp64; nothing that was given is written to.
    """
    if config.optimiser is ServerOptimiser.fedavg:
        return mean_delta, []
    first = moments[0].double() * config.momentum
    if config.optimiser is ServerOptimiser.fedavgm:
        first += mean_delta
        return first, [first]
    first += (1 - config.momentum) * mean_delta
    second = _mean_square(moments[1].double(), mean_delta.square(), config)
    return first / second.sqrt().add_(config.adaptivity), [first, second]


def _mean_square(second: Tensor, square: Tensor, config: ServerStepConfig) -> Tensor:
    new = 1 - config.second_momentum
    if config.optimiser is ServerOptimiser.fedadam:
        return config.second_momentum * second + new * square
    return second - (second - square).sign_().mul_(square).mul_(new)


def stepped(student: Tensor, along: Tensor, rate: float) -> Tensor:
    """The next student: student + rate * direction.

    Args:
        student: parameters of one group.
        along: `direction`'s, same shape.
        rate: dimensionless; 1 with fedavg is FedAvg.
    """
    return (along.double() * rate).add_(student).to(student.dtype)


def group_log_momentum(num_steps: Sequence[int], log_momentum_of: Callable[[int], float]) -> float:
    """Logarithm of m, the momentum of the server's teacher in one group.

    It is the voters' log products of momenta, averaged with the number of their steps as weights.

    Args:
        num_steps: optimiser steps that each voter did in this round, in the order of site names.
        log_momentum_of: sum of the schedule's log momenta over so many steps of this round; -inf for a momentum of 0.
    Returns: at most 0; 0 when nobody did a step, which leaves the teacher where it is.
    """
    total = sum(num_steps)
    if total == 0:
        return 0.0
    return math.fsum(steps * log_momentum_of(steps) for steps in num_steps if steps) / total


def follow(teacher: Tensor, student: Tensor, log_momentum: float) -> Tensor:
    """The next teacher: m * teacher + (1 - m) * new student, with m = exp(log_momentum).

    For a voter whose local student stands at its end point from the first step on, this is exactly the teacher that it
    reached itself; along a path the server's teacher is ahead of the local ones, because it sees only the end.
    """
    keep, take = math.exp(log_momentum), -math.expm1(log_momentum)
    return (teacher.double() * keep).add_(student.double() * take).to(teacher.dtype)
