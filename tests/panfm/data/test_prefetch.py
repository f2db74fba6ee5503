"""What is made ahead comes in order, is never far ahead, and fails in its turn."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import threading

import pytest

from panfm.data.prefetch import prefetched


@pytest.mark.parametrize("threads", [0, 1, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 2, 20])
def test_results_come_in_order_whatever_the_threads(threads: int, count: int) -> None:
    assert list(prefetched(lambda number: number**2, count, threads)) == [number**2 for number in range(count)]


def test_no_more_is_made_ahead_than_there_are_threads() -> None:
    """Whoever asked for `number` items so far, no maker has begun item number + threads or later."""
    begun: list[int] = []

    for asked, _ in enumerate(prefetched(begun.append, 30, threads=4), start=1):
        assert max(begun) < asked + 4
    assert sorted(begun) == list(range(30))


def test_threads_really_make_ahead() -> None:
    """Item 0 is handed out only after item 1 was made, so that somebody made it meanwhile; without that it would hang."""
    second = threading.Event()

    def make(number: int) -> int:
        if number == 1:
            second.set()
        assert number != 0 or second.wait(30)
        return number

    assert list(prefetched(make, 3, threads=2)) == [0, 1, 2]


def test_a_failure_is_raised_in_its_turn() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise ValueError("broken")
        return number

    items = prefetched(make, 5, threads=3)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(items)
