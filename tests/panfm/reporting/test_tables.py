"""Numbers are written so that people read them right."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.reporting.tables import count, duration, moment, number, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.12345, "0.123"), (1.0, "1.00"), (12.345, "12.3"), (1234.5, "1,234"), (-0.5, "-0.500"),
        (1e-6, "1.00e-06"), (3.2e9, "3.20e+09"), (math.nan, "–"), (None, "–"), ("7", "–"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_that_count(value: object, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e6, 1e6).filter(lambda value: abs(value) > 1e-4))
def test_a_written_number_is_within_half_a_unit_of_its_third_digit(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.44 s"), (38.4, "38.4 s"), (59.99, "60.0 s"), (192, "3 min 12 s"), (7260, "2 h 1 min"), (None, "–")],
)
def test_durations_are_in_words(seconds: object, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB")])
def test_sizes_are_decimal(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text


def test_counts_and_times() -> None:
    assert count(1234567) == "1,234,567"
    assert moment("2026-03-04T09:30:00.000+00:00") == "4 March 2026, 09:30 UTC"
    assert moment("yesterday") == "yesterday"
