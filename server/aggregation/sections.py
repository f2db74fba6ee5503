"""Which parameters of a group the same sites trained: without privacy there is one such section, the whole group.

With privacy a site trains what its own subjects can move and no more, for anything else would get nothing but noise: a site with
one organ sends no predictor of a masked organ. What some voters of a group did not send is averaged over the others.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panfm.update import Tensors
from server.aggregation.votes import Vote, names_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Parameters of one group, and who sent them."""

    names: tuple[str, ...]
    """Sorted."""
    voting: tuple[Vote, ...]
    """In the order of site names; each sent all of the names."""


def sections(group: str, voting: Sequence[Vote], model: Tensors) -> list[Section]:
    """The parameters of a group that anybody sent, by who sent them, in the order of their first names.

    Args:
        voting: the group's voters, in the order of site names.
        model: every parameter of the model.
    Raises: ValueError when a name is not the model's, or a shape is not that of the parameter; answers are checked before they
        are averaged.
    """
    senders: dict[str, list[Vote]] = {}
    for vote in voting:
        for name in names_of(vote.deltas, group):
            _check_fits(vote, name, model)
            senders.setdefault(name, []).append(vote)
    by_sites: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(senders):
        by_sites.setdefault(tuple(vote.site for vote in senders[name]), []).append(name)
    return [Section(names=tuple(names), voting=tuple(senders[names[0]])) for names in by_sites.values()]


def _check_fits(vote: Vote, name: str, model: Tensors) -> None:
    if name not in model or vote.deltas.shape(name) != model[name].shape:
        raise ValueError(
            f"the delta {name} of {vote.site} should be of a parameter and of its shape; check before averaging"
        )
