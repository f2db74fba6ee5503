"""The organ vocabulary: what may be a name, and which order holds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.groups import group_of
from panfm.organs import SEVEN_ORGANS, TOTALSEGMENTATOR_CT, TOTALSEGMENTATOR_MR, check_organ_names, in_order


def test_the_seven_are_valid_and_in_the_papers_order() -> None:
    assert check_organ_names(SEVEN_ORGANS) == SEVEN_ORGANS
    assert SEVEN_ORGANS == ("brain", "heart", "adipose", "liver", "kidney", "spleen", "pancreas")


@pytest.mark.parametrize("name", ["", "Brain", "2brain", "left kidney", "a.b", "brain\n", "trunk", "heads", "a" * 33])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="rename it"):
        check_organ_names(["heart", name])


@given(name=st.text(max_size=40))
def test_whatever_passes_names_its_own_group(name: str) -> None:
    try:
        check_organ_names([name])
    except ConfigError:
        return
    assert group_of(f"organs.{name}.weight") == name


def test_a_repeated_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="remove the repeated one"):
        check_organ_names(["heart", "brain", "heart"])


@given(organs=st.lists(st.sampled_from(SEVEN_ORGANS)))
def test_in_order_is_the_vocabularys(organs: list[str]) -> None:
    ordered = in_order(organs, SEVEN_ORGANS)
    assert set(ordered) == set(organs)
    assert list(ordered) == sorted(set(organs), key=SEVEN_ORGANS.index)


def test_an_unknown_organ_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown organ gall, lung: this study knows brain, heart"):
        in_order(["lung", "brain", "gall"], ["brain", "heart"])


@pytest.mark.parametrize("table", [TOTALSEGMENTATOR_CT, TOTALSEGMENTATOR_MR])
def test_label_tables_name_known_organs_and_no_id_twice(table: dict[str, tuple[int, ...]]) -> None:
    ids = [label for labels in table.values() for label in labels]
    assert len(ids) == len(set(ids))
    assert set(table) <= set(SEVEN_ORGANS)
