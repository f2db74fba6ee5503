"""Faults in a site's process: what is ordered happens there, and the next message finds a site that works."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from panfm.config import FaultKind
from simulation.faults import Fault
from simulation.local_grid import LocalGrid, answer_with
from simulation.site_faults import order, struck, without_order
from simulation.site_workers import SiteWorkers

PATIENCE_S = 120.0

app = ClientApp()


@app.query()
def hungry(message: Message, context: Context) -> Message:
    """A site that needs 256 MB, refuses when it cannot have them, and leaves a trace of having trained."""
    assert set(message.content.config_records) == {"question"}, "the order is not the app's to see"
    Path(str(context.node_config["site-folder"]), "trained").touch()
    kind = "site_update"
    if "modest" not in message.content.config_records["question"]:
        try:
            bytearray(2**28)
        except MemoryError:
            kind = "refusal"
    return Message(RecordDict({"envelope": ConfigRecord({"kind": kind, "process": os.getpid()})}), reply_to=message)


def work(message: Message, context: Context) -> Message:
    return answer_with(app, message, context)


@pytest.fixture(scope="module")
def workers() -> Iterator[SiteWorkers]:
    with SiteWorkers(work, 1, run_id=9) as made:
        yield made


def _ask(workers: SiteWorkers, folder: Path, fault: Fault | None, **question: bool) -> Message:
    grid = LocalGrid(app, [{"site-folder": str(folder)}], {}, {}, workers)
    content = RecordDict({"question": ConfigRecord({"a": True, **question})})
    message = Message(content, dst_node_id=1000, message_type=MessageType.QUERY)
    if fault is not None:
        order(message, fault)
    (message_id,) = grid.push_messages([message])
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for reply in grid.pull_messages([message_id]):
            return reply
    raise AssertionError("no reply came")


def _fault(kind: FaultKind, trained: bool = False) -> Fault:
    return Fault(kind=kind, trained=trained)


def _kind(reply: Message) -> str:
    return str(reply.content.config_records["envelope"]["kind"])


@pytest.mark.parametrize("trained", [False, True])
def test_a_crash_kills_the_process_before_or_after_it_trained(
    workers: SiteWorkers, tmp_path: Path, trained: bool
) -> None:
    reply = _ask(workers, tmp_path, _fault(FaultKind.crash, trained))
    assert reply.has_error()
    assert "died" in str(reply.error.reason)
    assert (tmp_path / "trained").exists() is trained
    assert _kind(_ask(workers, tmp_path, None)) == "site_update"


def test_an_exception_is_an_error_reply(workers: SiteWorkers, tmp_path: Path) -> None:
    reply = _ask(workers, tmp_path, _fault(FaultKind.exception))
    assert reply.has_error()
    assert "the rehearsal's plan" in str(reply.error.reason)
    assert not (tmp_path / "trained").exists()


def test_a_site_that_copes_without_memory_refuses_in_its_own_words(workers: SiteWorkers, tmp_path: Path) -> None:
    reply = _ask(workers, tmp_path, _fault(FaultKind.out_of_memory))
    assert _kind(reply) == "refusal"
    assert _kind(_ask(workers, tmp_path, None)) == "site_update", "the limit is lifted again"


def test_a_site_that_needs_little_memory_gets_none_all_the_same(workers: SiteWorkers, tmp_path: Path) -> None:
    reply = _ask(workers, tmp_path, _fault(FaultKind.out_of_memory), modest=True)
    assert reply.has_error()
    assert "MemoryError" in str(reply.error.reason)


def test_an_order_is_taken_out_once() -> None:
    message = LocalGrid(app, [{}], {}, {}).create_message(RecordDict(), MessageType.QUERY, 1000, "1")
    assert without_order(message) is None
    order(message, _fault(FaultKind.crash, trained=True))
    assert without_order(message) == _fault(FaultKind.crash, trained=True)
    assert without_order(message) is None
    assert not message.content


def test_an_ordered_exception_needs_no_process() -> None:
    with pytest.raises(RuntimeError, match="the rehearsal's plan"):
        struck(_fault(FaultKind.exception), pytest.fail)
