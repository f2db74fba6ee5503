"""Which hospital images what: different sets that overlap, and together always the whole study."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.organs import SEVEN_ORGANS
from simulation.partition import HOSPITALS, synthetic_hospitals

vocabularies = st.lists(st.sampled_from(SEVEN_ORGANS), min_size=1, unique=True).map(tuple)


@given(number=st.integers(1, 20), vocabulary=vocabularies)
def test_every_organ_is_held_and_every_hospital_holds_one(number: int, vocabulary: tuple[str, ...]) -> None:
    sites = synthetic_hospitals(number, 5, vocabulary)
    assert len({site.name for site in sites}) == number
    assert {organ for site in sites for organ in site.organs} == set(vocabulary)
    for site in sites:
        assert site.organs == tuple(organ for organ in vocabulary if organ in site.organs)
        assert site.num_subjects == 5


def test_the_demos_hospitals_differ_and_overlap() -> None:
    sites = synthetic_hospitals(6, 48, SEVEN_ORGANS)
    assert [(site.name, set(site.organs)) for site in sites] == [(name, set(organs)) for name, organs in HOSPITALS]
    assert len({site.organs for site in sites}) == 6
    held = [sum(organ in site.organs for site in sites) for organ in SEVEN_ORGANS]
    assert min(held) >= 2, "an organ of one hospital alone is not federated"


def test_more_hospitals_than_patterns_get_names_of_their_own() -> None:
    assert [site.name for site in synthetic_hospitals(8, 1, SEVEN_ORGANS)[6:]] == ["neuro2", "cardiac2"]


def test_organ_that_cannot_be_synthesised_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown organ stomach: this study knows brain"):
        synthetic_hospitals(3, 5, ("brain", "stomach"))
