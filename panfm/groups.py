"""Which group a parameter belongs to: the shared trunk, the shared heads, or one organ's group.

The group is read from the parameter's module path and from nothing else, so that the model, the wire, the averaging and
the checkpoint agree by construction. `trunk.*` and `heads.*` are shared by all sites; `organs.<organ>.*` is trained by
the sites that image the organ. A parameter anywhere else is a defect, and a test walks the model to prove there
is none.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

TRUNK = "trunk"
HEADS = "heads"
SHARED_GROUPS: tuple[str, ...] = (TRUNK, HEADS)


@lru_cache(maxsize=4096)  # more than a model's parameters: a round asks for the same names for every site
def group_of(parameter: str) -> str:
    """The group of a parameter by its module path: "trunk", "heads" or the organ's name.

    Raises: ValueError when the path belongs to no group.
    """
    head, *rest = parameter.split(".")
    if head in SHARED_GROUPS and rest and all(rest):
        return head
    if head == "organs" and len(rest) >= 2 and all(rest) and rest[0] not in SHARED_GROUPS:
        return rest[0]
    raise ValueError(f"parameter {parameter!r} belongs to no group; expected trunk.*, heads.* or organs.<organ>.*")


def split_by_group(named: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The same values, by group and then by name, both in sorted order."""
    groups: dict[str, dict[str, T]] = {}
    for name in sorted(named):
        groups.setdefault(group_of(name), {})[name] = named[name]
    return {group: groups[group] for group in sorted(groups)}


def keep_groups(named: Mapping[str, T], groups: Iterable[str]) -> dict[str, T]:
    """Only the values whose group is asked for, in sorted order of names."""
    wanted = set(groups)
    return {name: named[name] for name in sorted(named) if group_of(name) in wanted}
