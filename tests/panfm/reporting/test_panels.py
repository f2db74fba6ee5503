"""Panels draw what they are given, thin what cannot be seen, and are silent about nothing."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from panfm.reporting.panels import Line, Panel, small_multiples, thinned
from panfm.reporting.svg import house_style


@given(st.dictionaries(st.integers(0, 2000), st.floats(-10, 10), max_size=300), st.integers(2, 40))
def test_thinning_keeps_order_the_ends_and_the_values(series: dict[int, float], most: int) -> None:
    rounds, values = thinned(series, most)
    assert len(rounds) == min(len(series), most)
    assert rounds == sorted(set(rounds))
    assert values == [series[number] for number in rounds]
    if series:
        assert (rounds[0], rounds[-1]) == (min(series), max(series))


def test_panels_without_a_value_leave_no_empty_frame() -> None:
    full = Panel(title="heart", colour="#CC6677", lines=(Line(series={1: 0.5, 2: 0.25}, colour="#CC6677"),))
    empty = Panel(title="spleen", colour="#AA4499", lines=(Line(series={}, colour="#AA4499"),))
    with house_style():
        drawn = small_multiples([full, empty], "tried", "a trial", rounds=[1, 2])
        assert small_multiples([empty], "tried", "a trial", rounds=[1, 2]) == ""
    assert "heart" in drawn
    assert "spleen" not in drawn
