"""A round's accepted answers become the next model, group by group: mean of deltas, server step, server teacher.

A group that nobody trained, or that too few sites trained, stays the very tensors that it was: student, teacher and what
the server's optimiser remembers of it. So does each parameter that no voter of its group sent (`sections`). Everything is
done block by block, so that beside the next model itself no more memory is needed than a few blocks, however many sites
answered.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panfm.config import FederationConfig, GroupMean, ServerStepConfig
from panfm.groups import SHARED_GROUPS, split_by_group
from panfm.update import Tensors
from server.aggregation.norm_bounds import bounded, delta_norm
from server.aggregation.organ_mean import Ballot, Space, ballot, mean_block, mean_of
from server.aggregation.sections import Section, sections
from server.aggregation.server_step import MOMENTS, direction, follow, group_log_momentum, start_of, stepped
from server.aggregation.state import ServerState
from server.aggregation.votes import Vote, names_of, spans
from server.aggregation.weights import group_weights, step_scales, voters


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """The model after a round, and what each group's mean stood on."""

    student: dict[str, Tensor]
    """Every parameter of the model; unchanged groups are the same tensor objects as before."""
    teacher: dict[str, Tensor]
    """The EMA teacher, same names."""
    state: ServerState
    """For the next round, and for the checkpoint."""
    weights: dict[str, dict[str, float]]
    """group -> site -> weight; only groups that changed, each summing to 1. A robust mean counts every voter the same. Where not
    every voter sent a parameter, those who did have its weights among themselves."""
    unchanged: dict[str, str]
    """group -> why it stayed bit for bit as it was; one line for people."""
    delta_norm: dict[str, float]
    """group -> L2 norm of the mean delta; only groups that changed."""
    means: dict[str, GroupMean]
    """group -> the mean that its number of voters allowed; only groups that changed. The plain one where it was that of any of
    the group's parameters."""
    shortened: dict[str, dict[str, float]]
    """group -> site -> what its delta was multiplied with, below 1; only where a norm bound did something."""


def aggregate_round(
    student: Tensors,
    teacher: Tensors,
    votes: Sequence[Vote],
    state: ServerState,
    config: FederationConfig,
    log_momentum_of: Callable[[int], float],
    *,
    in_place: bool = False,
) -> RoundResult:
    """The next student, teacher and state from this round's accepted updates.

    Args:
        student: every parameter of the model, by name, on the CPU.
        teacher: the EMA teacher, same names.
        votes: accepted answers (`checks.check_update`), one a site, in any order.
        state: what the last round left; `ServerState()` at the start of a run.
        config: weighting, mean, server step, and the fewest sites that may change an organ's group.
        log_momentum_of: sum of the schedule's log momenta over so many steps of this round.
        in_place: write the next model and state over the given tensors, for a coordinator whose memory is short: no model
            more is needed then, instead of two. Whatever is raised leaves them half written: go back to the checkpoint.
    Raises: ValueError when a site answers twice, or the names of student, teacher and deltas do not fit together; whatever
        reading a block raises.
    """
    _check_fit(student, teacher, votes)
    coming = _Coming(student, teacher, state, in_place)
    for group in split_by_group(student):
        voting = voters(group, votes)
        parts = sections(group, voting, student)
        if (reason := _why_unchanged(group, max((len(part.voting) for part in parts), default=0), config)) is not None:
            coming.unchanged[group] = reason
        else:
            coming.move(
                group, voting, [part for part in parts if _is_moved(group, part, config)], config, log_momentum_of
            )
    return coming.result()


class _Coming:
    """The next model while it is made, group after group."""

    def __init__(self, student: Tensors, teacher: Tensors, state: ServerState, in_place: bool) -> None:
        self._student, self._teacher = dict(sorted(student.items())), dict(sorted(teacher.items()))
        self._moments, self._past_norms = dict(state.moments), dict(state.past_norms)
        self._in_place, self._space = in_place, Space()
        self._weights: dict[str, dict[str, float]] = {}
        self._delta_norm: dict[str, float] = {}
        self._means: dict[str, GroupMean] = {}
        self._shortened: dict[str, dict[str, float]] = {}
        self.unchanged: dict[str, str] = {}

    def move(
        self,
        group: str,
        voting: Sequence[Vote],
        parts: Sequence[Section],
        config: FederationConfig,
        log_momentum_of: Callable[[int], float],
    ) -> None:
        """One group, by its voters."""
        weights = _weights(group, voting, config)
        scales = self._scales(group, voting, weights, config)
        squares: list[float] = []
        for part in parts:
            votes = ballot(part.voting, _weights(group, part.voting, config), scales, config.robust)
            log_momentum = group_log_momentum([vote.num_steps for vote in part.voting], log_momentum_of)
            squares += [self._move_parameter(name, votes, config.server, log_momentum) for name in part.names]
        self._weights[group] = weights
        self._means[group] = mean_of(min(len(part.voting) for part in parts), config.robust)
        self._delta_norm[group] = math.sqrt(math.fsum(squares))

    def _scales(
        self, group: str, voting: Sequence[Vote], weights: Mapping[str, float], config: FederationConfig
    ) -> dict[str, float]:
        """What each site's delta is multiplied with: per step first, so that the bound holds for what enters the mean."""
        scales = dict.fromkeys(weights, 1.0)
        if config.server.normalise_steps:
            scales = step_scales({vote.site: vote.num_steps for vote in voting}, weights)
        if not config.robust.max_norm and not config.robust.past_factor:
            return scales
        norms = {v.site: scales[v.site] * delta_norm(v.deltas, names_of(v.deltas, group)) for v in voting}
        done = bounded(norms, self._past_norms.get(group, []), config.robust)
        if done.past:
            self._past_norms[group] = done.past
        if short := {site: factor for site, factor in done.factors.items() if factor < 1}:
            self._shortened[group] = short
        return {site: scales[site] * done.factors[site] for site in scales}

    def _move_parameter(self, name: str, votes: Ballot, config: ServerStepConfig, log_momentum: float) -> float:
        """The next student, teacher and moments of one parameter; returns the sum of squares of its mean delta."""
        student, teacher = self._student[name], self._teacher[name]
        moments = [self._moment(kind, name, student, config) for kind in MOMENTS[config.optimiser]]
        old = [student, teacher, *moments]
        new = [self._room_for(tensor) for tensor in old]
        if new[1].data_ptr() == new[0].data_ptr():  # a student and a teacher that began as one
            new[1] = torch.empty_like(new[1])
        square = 0.0
        flat_old, flat_new = [tensor.reshape(-1) for tensor in old], [tensor.view(-1) for tensor in new]
        for start, stop in spans(student.numel(), votes.block_size):
            # The mean of deltas is rounded once, to what deltas are.
            delta = mean_block(votes, name, start, stop, self._space).float().double()
            blocks = _next_blocks([tensor[start:stop] for tensor in flat_old], delta, config, log_momentum)
            for flat, block in zip(flat_new, blocks, strict=True):
                flat[start:stop].copy_(block)
            square += float(delta.square_().sum())
        self._student[name], self._teacher[name] = new[0], new[1]
        self._moments.update(zip((f"{kind}/{name}" for kind in MOMENTS[config.optimiser]), new[2:], strict=True))
        return square

    def _moment(self, kind: str, name: str, student: Tensor, config: ServerStepConfig) -> Tensor:
        known = self._moments.get(f"{kind}/{name}")
        return torch.full(student.shape, start_of(kind, config)) if known is None else known

    def _room_for(self, tensor: Tensor) -> Tensor:
        if self._in_place and tensor.is_contiguous():
            return tensor
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def result(self) -> RoundResult:
        """What has become of the model."""
        return RoundResult(
            student=self._student,
            teacher=self._teacher,
            state=ServerState(moments=dict(sorted(self._moments.items())), past_norms=self._past_norms),
            weights=self._weights,
            unchanged=self.unchanged,
            delta_norm=self._delta_norm,
            means=self._means,
            shortened=self._shortened,
        )


def _next_blocks(
    old: Sequence[Tensor], mean_delta: Tensor, config: ServerStepConfig, log_momentum: float
) -> list[Tensor]:
    """The same blocks of the next student, teacher and moments."""
    along, moments = direction(mean_delta, old[2:], config)
    student = stepped(old[0], along, config.rate)
    return [student, follow(old[1], student, log_momentum), *moments]


def _weights(group: str, voting: Sequence[Vote], config: FederationConfig) -> dict[str, float]:
    """Site -> weight in the mean that so many voters get."""
    if mean_of(len(voting), config.robust) is GroupMean.mean:
        return group_weights(group, voting, config)
    return {vote.site: 1 / len(voting) for vote in voting}


def _is_moved(group: str, part: Section, config: FederationConfig) -> bool:
    return _why_unchanged(group, len(part.voting), config) is None


def _why_unchanged(group: str, num_voters: int, config: FederationConfig) -> str | None:
    if num_voters == 0:
        return "no accepted update trained it in this round"
    if group not in SHARED_GROUPS and num_voters < config.min_sites_per_group:
        return f"trained by {num_voters} sites, federation.min_sites_per_group asks for {config.min_sites_per_group}"
    return None


def _check_fit(student: Tensors, teacher: Tensors, votes: Sequence[Vote]) -> None:
    if student.keys() != teacher.keys():
        raise ValueError(f"student and teacher differ in names: {sorted(student.keys() ^ teacher.keys())[:3]}")
    sites = [vote.site for vote in votes]
    if len(set(sites)) != len(sites):
        raise ValueError(f"one update a site and round, got {sorted(sites)}; leave out the repeated one")
