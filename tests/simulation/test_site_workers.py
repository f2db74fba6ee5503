"""Sites side by side: every reply comes, a dead process takes one message with it, and no bit of the model changes."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.progress import STEPS
from panfm import update
from panfm.export.model_folder import read_model
from simulation.local_grid import CLIENT_APP_RAISED_EXCEPTION, LocalGrid, run_in_process
from simulation.site_workers import SiteWorkers
from tests.client.small_study import SmallStudy

PATIENCE_S = 120.0


def work(message: Message, context: Context) -> Message:
    """What the sites of these tests do: site `dies` kills its process, `slow` waits until it may go on."""
    site = Path(str(context.node_config["site-folder"]))
    for _ in range(100 if site.name == "talkative" else 1):
        logging.getLogger(STEPS).info("at work", extra={"site": site.name})
    if site.name == "dies":
        os._exit(9)
    while site.name == "slow" and not site.exists():
        time.sleep(0.01)
    return Message(RecordDict({"seen": ConfigRecord({"site": site.name, "process": os.getpid()})}), reply_to=message)


@pytest.fixture(scope="module")
def workers() -> Iterator[SiteWorkers]:
    with SiteWorkers(work, 2, run_id=7) as made:
        yield made


def _grid(workers: SiteWorkers, folder: Path, *sites: str) -> LocalGrid:
    return LocalGrid(ClientApp(), [{"site-folder": str(folder / site)} for site in sites], {}, {}, workers)


def _pushed(grid: LocalGrid) -> list[str]:
    questions = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in grid.get_node_ids()]
    return list(grid.push_messages(questions))


def _next(grid: LocalGrid, wanted: list[str]) -> Message:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        for reply in grid.pull_messages(wanted):
            return reply
    raise AssertionError("no reply came")


def _site(reply: Message) -> str:
    return str(reply.content.config_records["seen"]["site"])


def test_a_slow_site_holds_up_nobody_else(workers: SiteWorkers, tmp_path: Path) -> None:
    grid = _grid(workers, tmp_path, "slow", "a", "b", "c")
    ids = _pushed(grid)
    others = [_next(grid, ids) for _ in range(3)]
    assert sorted(map(_site, others)) == ["a", "b", "c"]
    assert [reply.metadata.reply_to_message_id for reply in others] == ids[1:]
    assert list(grid.pull_messages(ids)) == []
    (tmp_path / "slow").touch()
    assert _site(_next(grid, ids)) == "slow"
    processes = {reply.content.config_records["seen"]["process"] for reply in others}
    assert os.getpid() not in processes


def test_only_what_is_asked_for_is_handed_out(workers: SiteWorkers, tmp_path: Path) -> None:
    grid = _grid(workers, tmp_path, "a", "b")
    first, second = _pushed(grid)
    assert _site(_next(grid, [second])) == "b"
    assert _site(_next(grid, [first])) == "a"
    assert grid.pull_messages(["unknown"]) == []


def test_a_process_that_dies_takes_one_message_with_it(workers: SiteWorkers, tmp_path: Path) -> None:
    grid = _grid(workers, tmp_path, "a", "dies", "b", "c")
    ids = _pushed(grid)
    replies = {reply.metadata.reply_to_message_id: reply for reply in (_next(grid, ids) for _ in ids)}
    assert [replies[message_id].has_error() for message_id in ids] == [False, True, False, False]
    assert replies[ids[1]].error.code == CLIENT_APP_RAISED_EXCEPTION
    assert "died" in str(replies[ids[1]].error.reason)


def test_steps_are_shown_where_the_person_sits(
    workers: SiteWorkers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = _grid(workers, tmp_path, "a", "b")
    ids = _pushed(grid)
    with caplog.at_level(logging.INFO, logger=STEPS):
        for _ in ids:
            _next(grid, ids)
    assert sorted(record.__dict__["site"] for record in caplog.records if record.name == STEPS) == ["a", "b"]


def test_a_reply_is_found_behind_any_number_of_steps_in_one_look(workers: SiteWorkers, tmp_path: Path) -> None:
    grid = _grid(workers, tmp_path, "talkative")
    (message_id,) = _pushed(grid)
    question = grid._waiting[message_id].label
    taken = workers.take(
        [message_id], PATIENCE_S
    )  # a look that ends with each step would cost a pause between two of them
    assert taken is not None
    assert taken[1] is not None
    assert taken[1].metadata.reply_to_message_id == question.metadata.message_id


def test_processes_end_with_the_rehearsal() -> None:
    with SiteWorkers(work, 1, run_id=8) as few:
        (worker,) = few._idle
        process = worker._process
        assert process.is_alive()
    assert not process.is_alive()


@pytest.mark.slow
def test_side_by_side_and_in_turn_give_the_same_bits(study: SmallStudy) -> None:
    models = []
    for workers in (1, 2):
        changed = study.with_settings(f"workers={workers}", name=f"workers-{workers}")
        run_in_process(changed.config, changed.runs, changed.hospitals)
        models.append(read_model(changed.runs / changed.config.name / "model"))
    assert update.digest(models[0].student) == update.digest(models[1].student)
    assert update.digest(models[0].teacher) == update.digest(models[1].teacher)
