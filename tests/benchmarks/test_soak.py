"""The soak's verdict: what grows is found, what varies is not, and what fills at the beginning is forgiven."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.soak import Minute, growths, page

WHO = ("coordinator", "SuperLink")


def _soaked(memory_mb: Callable[[int], float], handles: Callable[[int], int] = lambda _: 40) -> list[Minute]:
    return [
        Minute(
            rounds=10 * minute,
            memory_mb={WHO: memory_mb(minute)},
            handles={WHO: handles(minute)},
            disk_mb={"the run": 1.0 + minute},
        )
        for minute in range(1, 31)
    ]


@pytest.mark.parametrize(
    ("told", "is_flat"),
    [
        (_soaked(lambda _: 300.0), True),
        (_soaked(lambda minute: 300.0 + 12 * (minute % 2)), True),
        (_soaked(lambda minute: 300.0 - 100.0 / minute), True),
        (_soaked(lambda minute: 300.0 + 2 * minute), False),
        (_soaked(lambda _: 300.0, lambda minute: 40 + minute // 3), False),
        (_soaked(lambda _: 300.0, lambda minute: 40 + minute % 2), True),
    ],
    ids=["level", "up and down", "fills and stays", "leaks 2 MB a minute", "leaks handles", "handles up and down"],
)
def test_growth_is_told_from_noise(told: list[Minute], is_flat: bool) -> None:
    (growth,) = growths(told)
    assert growth.who == WHO
    assert growth.is_flat is is_flat
    assert ("**NO**" in page(told)) is not is_flat


def test_page_tells_each_minute_and_what_a_round_leaves_on_disk() -> None:
    text = page(_soaked(lambda _: 300.0))
    assert "| 30 | 300 | 300, 40 |" in text
    assert "| the run | 2.0 MB | 31.0 MB | 100.0 kB |" in text, "29 MB in 290 rounds"
