"""Batches made ahead of time by threads, handed out in their order.

Each is a function of its number alone, so that what is trained on does not depend on how many threads make it or on which
is ready first. Threads and not processes: reading a memory map, drawing noise and torch all let go of Python's lock.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], count: int, threads: int) -> Iterator[T]:
    """make(0), make(1) .. make(count - 1), in this order, at most one more in memory than threads make.

    Args:
        make: may run in several threads at once; what it raises is raised in its turn.
        threads: 0 makes each when it is asked for.
    """
    if threads == 0:
        yield from map(make, range(count))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="batch") as pool:
        first = min(threads, count)
        ahead = deque(pool.submit(make, number) for number in range(first))
        try:
            for number in range(first, count + first):
                made = ahead.popleft().result()
                if number < count:
                    ahead.append(pool.submit(make, number))
                yield made
        finally:
            for future in ahead:
                future.cancel()
