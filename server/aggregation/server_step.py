"""The coordinator's own step in one group: the student moves along the mean delta, the EMA teacher follows it.

Plain FedAvg is the step at rate 1; the step is a function of its own so that optimisers with state can stand beside it.
Arithmetic is done in fp64 and rounded once to the parameter's dtype.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from panfm.update import Tensors


def server_step(student: Tensors, mean_delta: Tensors, rate: float) -> dict[str, Tensor]:
    """The group's next student: student + rate * mean delta, name by name.

    Args:
        student: parameters of one group.
        mean_delta: the weighted mean of the voters' deltas, same names and shapes.
        rate: step along the mean delta (dimensionless); 1 is FedAvg.
    Raises: ValueError when the names differ.
    """
    _check_same_names(student, mean_delta)
    return {
        name: (student[name].double() + rate * mean_delta[name].double()).to(student[name].dtype)
        for name in sorted(student)
    }


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


def follow(teacher: Tensors, student: Tensors, log_momentum: float) -> dict[str, Tensor]:
    """The group's next teacher: m * teacher + (1 - m) * new student, with m = exp(log_momentum).

    For a voter whose local student stands at its end point from the first step on, this is exactly the teacher that it
    reached itself; along a path the server's teacher is ahead of the local ones, because it sees only the end.

    Raises: ValueError when the names differ.
    """
    _check_same_names(teacher, student)
    keep, take = math.exp(log_momentum), -math.expm1(log_momentum)
    return {
        name: (keep * teacher[name].double() + take * student[name].double()).to(teacher[name].dtype)
        for name in sorted(teacher)
    }


def _check_same_names(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    if left.keys() != right.keys():
        raise ValueError(f"one group, two sets of names; first differences: {sorted(left.keys() ^ right.keys())[:3]}")
