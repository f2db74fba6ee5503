"""One function over many scans, in several processes: each scan is worked on whole, in one of them.

The calling process works too: it starts at once from the end of the list, while the others (a second each, for numpy, scipy
and nibabel) take theirs from the front. So a short list is never slower with more processes than with one.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TypeVar

from panfm.errors import DataError

Job = TypeVar("Job")
Answer = TypeVar("Answer")

_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by numerical libraries when they are loaded; as many processes as cores leave one thread for each."""


def usable_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def over_processes(work: Callable[[Job], Answer], jobs: Sequence[Job], processes: int) -> Iterator[Answer]:
    """The answers of all jobs, in the order in which they are ready.

    Args:
        work: a function of a module, for it is pickled; so are jobs and answers.
        processes: how many work, this one included; 1 starts none.
    Raises: what `work` raises, after the jobs that had begun are done; DataError when a process was killed.
    """
    if processes <= 1:
        yield from map(work, jobs)
        return
    # spawn: a fork of a process in which torch runs threads may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes - 1, mp_context=context, initializer=_begin_worker)
    ready: SimpleQueue[Future[Answer]] = SimpleQueue()
    try:
        with _one_thread_each():
            futures = [pool.submit(work, job) for job in jobs]
        for future in futures:
            future.add_done_callback(ready.put)
        yield from _shared(work, jobs, futures, ready)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads scans was killed, perhaps for memory; run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _shared(
    work: Callable[[Job], Answer],
    jobs: Sequence[Job],
    futures: Sequence[Future[Answer]],
    ready: SimpleQueue[Future[Answer]],
) -> Iterator[Answer]:
    """Take jobs back from the end and do them here, handing out in between what the others have ready."""
    outstanding = len(jobs)
    for job, future in zip(reversed(jobs), reversed(futures), strict=True):
        if not future.cancel():  # begun; the pool takes them in order, so are all before it
            break
        yield work(job)
        outstanding -= 1
        while not ready.empty():
            if not (other := ready.get()).cancelled():
                yield other.result()
                outstanding -= 1
    while outstanding:
        if not (other := ready.get()).cancelled():
            yield other.result()
            outstanding -= 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(_THREAD_COUNTS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    """Ctrl-C ends a worker without a word, for the process that the person started speaks; its death ends it, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
