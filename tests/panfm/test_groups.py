"""Every parameter path belongs to exactly one group or to none, read here a second way."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.groups import HEADS, TRUNK, group_of, keep_groups, split_by_group

segments = st.sampled_from(["trunk", "heads", "organs", "brain", "heart", "weight", "0", ""])
paths = st.lists(segments, min_size=1, max_size=4).map(".".join)
good_paths = st.sampled_from(["trunk.a", "trunk.b.c", "heads.a", "organs.brain.a", "organs.brain.b", "organs.heart.a"])


def _by_pattern(path: str) -> str | None:
    match = re.fullmatch(r"(?:(trunk|heads)|organs\.(?!(?:trunk|heads)\.)([^.]+))(?:\.[^.]+)+", path)
    return match and (match[1] or match[2])


@given(path=paths)
def test_group_is_read_from_the_path(path: str) -> None:
    expected = _by_pattern(path)
    if expected is None:
        with pytest.raises(ValueError, match="belongs to no group"):
            group_of(path)
    else:
        assert group_of(path) == expected


def test_groups_by_name() -> None:
    assert group_of("trunk.blocks.0.attention.weight") == TRUNK
    assert group_of("heads.predictor.bias") == HEADS
    assert group_of("organs.kidney.patch_embed.weight") == "kidney"


@pytest.mark.parametrize("path", ["organs.trunk.weight", "organs.heads.weight"])
def test_no_organ_can_pass_for_a_shared_group(path: str) -> None:
    with pytest.raises(ValueError, match="belongs to no group"):
        group_of(path)


@given(named=st.dictionaries(good_paths, st.integers()))
def test_split_is_a_partition_in_sorted_order(named: dict[str, int]) -> None:
    groups = split_by_group(named)
    joined = [(name, value) for group in groups.values() for name, value in group.items()]
    assert sorted(joined) == sorted(named.items())
    assert list(groups) == sorted(groups)
    for group, members in groups.items():
        assert list(members) == sorted(members)
        assert {group_of(name) for name in members} == {group}
        assert keep_groups(named, [group]) == members
    assert keep_groups(named, []) == {}
    assert keep_groups(named, groups) == named
