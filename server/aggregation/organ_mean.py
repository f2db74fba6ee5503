"""The mean of a round, group by group, over the sites that hold the group: what federates the pan-organ model.

A group that nobody trained, or that too few sites trained, stays the very tensors that it was, student and teacher.
Sums run in the order of site names, in fp64, rounded once: arrival order changes no bit, and equal votes return
themselves. One tensor name is read at a time, so the updates may lie on disk behind a lazy mapping.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from panfm import update as tensors_update
from panfm.config import FederationConfig
from panfm.groups import SHARED_GROUPS, group_of, split_by_group
from panfm.protocol import SiteUpdate
from panfm.update import Tensors
from server.aggregation.server_step import follow, group_log_momentum, server_step
from server.aggregation.weights import group_weights, voters


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """The model after a round, and what each group's mean stood on."""

    student: dict[str, Tensor]
    """Every parameter of the model; unchanged groups are the same tensor objects as before."""
    teacher: dict[str, Tensor]
    """The EMA teacher, same names."""
    weights: dict[str, dict[str, float]]
    """group -> site -> weight; only groups that changed, each summing to 1."""
    unchanged: dict[str, str]
    """group -> why it stayed bit for bit as it was; one line for people."""
    delta_norm: dict[str, float]
    """group -> L2 norm of the mean delta; only groups that changed."""


def aggregate_round(
    student: Tensors,
    teacher: Tensors,
    updates: Sequence[SiteUpdate],
    config: FederationConfig,
    log_momentum_of: Callable[[int], float],
) -> RoundResult:
    """The next student and teacher from this round's accepted updates.

    Args:
        student: every parameter of the model, by name.
        teacher: the EMA teacher, same names.
        updates: accepted answers (`checks.check_update`), one a site, in any order.
        config: weighting, server rate, and the fewest sites that may change an organ's group.
        log_momentum_of: sum of the schedule's log momenta over so many steps of this round.
    Raises: ValueError when a site answers twice, or the names of student, teacher and deltas do not fit together.
    """
    _check_fit(student, teacher, updates)
    old_teacher = split_by_group(teacher)
    weights: dict[str, dict[str, float]] = {}
    unchanged: dict[str, str] = {}
    delta_norm: dict[str, float] = {}
    new_student, new_teacher = dict(sorted(student.items())), dict(sorted(teacher.items()))
    for group, old_student in split_by_group(student).items():
        voting = voters(group, updates)
        if (reason := _why_unchanged(group, len(voting), config)) is not None:
            unchanged[group] = reason
            continue
        weights[group] = group_weights(group, voting, config)
        delta = mean_delta(group, voting, weights[group])
        delta_norm[group] = tensors_update.norm(delta)
        stepped = server_step(old_student, delta, config.server_rate)
        log_momentum = group_log_momentum([vote.num_steps for vote in voting], log_momentum_of)
        new_student.update(stepped)
        new_teacher.update(follow(old_teacher[group], stepped, log_momentum))
    return RoundResult(
        student=new_student, teacher=new_teacher, weights=weights, unchanged=unchanged, delta_norm=delta_norm
    )


def mean_delta(group: str, updates: Sequence[SiteUpdate], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The weighted mean of one group's deltas, name by name, over the sites that `weights` names.

    Memory: the result and a few tensors of one name at a time; `deltas` is only iterated for names and read by key.

    Args:
        group: "trunk", "heads" or an organ.
        updates: one a site, in any order; updates of sites without a weight are not read.
        weights: site -> weight, summing to 1.
    Returns: tensors in the dtype of the deltas, accumulated in fp64 in the order of site names.
    Raises: ValueError when a site with a weight has no update, or the sites' names within the group differ.
    """
    deltas = {update.site: update.deltas for update in updates if update.site in weights}
    if deltas.keys() != weights.keys() or not weights:
        raise ValueError(f"weights name the sites {sorted(weights)}, updates came from {sorted(deltas)}")
    names = {site: {name for name in deltas[site] if group_of(name) == group} for site in sorted(weights)}
    first = next(iter(names.values()))
    if not first or any(other != first for other in names.values()):
        raise ValueError(f"the sites' deltas of {group} must hold the same names; check updates before averaging")
    return {name: _weighted_sum(name, deltas, weights) for name in sorted(first)}


def _weighted_sum(name: str, deltas: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensor:
    # Product and sum round separately on purpose: a fused multiply-add in some lanes would make bits depend on the
    # processor. Starting from the first term, not from zeros, keeps the sign of a zero.
    first, *others = sorted(weights)
    vote = deltas[first][name]
    total = vote.double() * weights[first]
    for site in others:
        total += deltas[site][name].double() * weights[site]
    return total.to(vote.dtype)


def _why_unchanged(group: str, num_voters: int, config: FederationConfig) -> str | None:
    if num_voters == 0:
        return "no accepted update trained it in this round"
    if group not in SHARED_GROUPS and num_voters < config.min_sites_per_group:
        return f"trained by {num_voters} sites, federation.min_sites_per_group asks for {config.min_sites_per_group}"
    return None


def _check_fit(student: Tensors, teacher: Tensors, updates: Sequence[SiteUpdate]) -> None:
    if student.keys() != teacher.keys():
        raise ValueError(f"student and teacher differ in names: {sorted(student.keys() ^ teacher.keys())[:3]}")
    sites = [update.site for update in updates]
    if len(set(sites)) != len(sites):
        raise ValueError(f"one update a site and round, got {sorted(sites)}; leave out the repeated one")
