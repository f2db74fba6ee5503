"""Faults in a site's own process: it is killed, its program raises, or it gets no more memory.

The order to fail travels in the message, as a record that only a rehearsal adds and no program of panfm reads, so a worker needs
to know nothing of the plan. It is taken out before the site's app sees the message.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.app import ConfigRecord, Message

from panfm.config import FaultKind
from simulation.faults import Fault

IN_PROCESS = frozenset({FaultKind.crash, FaultKind.exception, FaultKind.out_of_memory})
"""Faults of this kind; the others happen on the way."""

STARVED_S = 3.0
"""How long a site may go on without memory: what hangs for want of it (a thread that cannot start, for one) is killed then."""

_ORDER = "rehearsal_fault"
_STATM = Path("/proc/self/statm")


def order(message: Message, fault: Fault) -> None:
    """Have the site that gets this message fail in the way of one of `IN_PROCESS`."""
    message.content[_ORDER] = ConfigRecord({"kind": fault.kind.name, "trained": fault.trained})


def without_order(message: Message) -> Fault | None:
    """Take the order out of a message. Returns: what was ordered, if anything."""
    if message.has_error() or _ORDER not in message.content.config_records:
        return None
    found = message.content.config_records[_ORDER]
    del message.content[_ORDER]
    return Fault(kind=FaultKind[str(found["kind"])], trained=bool(found["trained"]))


def struck(fault: Fault, answer: Callable[[], Message]) -> Message:
    """What a site answers that fails so, if it still can.

    Raises: RuntimeError or MemoryError, by the kind of fault; a crash ends this process.
    """
    if fault.kind is FaultKind.crash:
        if fault.trained:
            answer()
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind is FaultKind.out_of_memory:
        return _starved(answer)
    raise RuntimeError("the rehearsal's plan had this program fail")


def _starved(answer: Callable[[], Message]) -> Message:
    """The answer of a site whose process may take no more memory than it has: a refusal, if it copes; or the process dies.

    What was freed before may be enough for a small model; then more is asked for than can be had.
    """
    with _killed_after(STARVED_S), _no_more_memory():
        reply = answer()
        if _is_refusal(reply):
            return reply
        bytearray(_address_space_bytes())
    raise AssertionError("the limit of the address space was not kept")


def _is_refusal(reply: Message) -> bool:
    envelope = None if reply.has_error() else reply.content.config_records.get("envelope")
    return envelope is not None and envelope["kind"] == "refusal"


@contextlib.contextmanager
def _killed_after(seconds: float) -> Iterator[None]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


@contextlib.contextmanager
def _no_more_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space_bytes() -> int:
    return int(_STATM.read_text().split()[0]) * resource.getpagesize()
