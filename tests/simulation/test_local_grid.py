"""The grid without a network: the real apps see what a deployment would show them, and faults stay where they happen."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from panfm.export.model_folder import read_model
from panfm.reporting.record import RunFinished
from simulation.local_grid import CLIENT_APP_RAISED_EXCEPTION, LocalGrid, run_in_process
from tests.client.small_study import SmallStudy

Handler = Callable[[Message, Context], Message]

AFTER_AN_UPDATE = (
    "LocalGrid leans on this internal of Flower. After an update of flwr: find what took its place (in flwr's own "
    "inmemory_grid.py), mend simulation/local_grid.py, and run the slow test in test_loopback.py, which compares with Flower's "
    "own programs"
)


def _grid(handler: Handler, *sites: str) -> LocalGrid:
    app = ClientApp()

    @app.query()
    def answer(message: Message, context: Context) -> Message:
        return handler(message, context)

    return LocalGrid(app, [{"site-folder": site} for site in sites], {"composed": "x"}, {"runs-dir": "y"})


def _echo(message: Message, context: Context) -> Message:
    seen = {"site": str(context.node_config["site-folder"]), "composed": str(context.run_config["composed"])}
    return Message(RecordDict({"seen": ConfigRecord({**seen})}), reply_to=message)


def _question(node: int) -> Message:
    return Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)


def _seen(reply: Message) -> str:
    return str(reply.content.config_records["seen"]["site"])


def test_internals_that_it_leans_on_are_those_of_the_pinned_flower() -> None:
    assert version("flwr") == "1.41.0", AFTER_AN_UPDATE
    from flwr.common.constant import ErrorCode
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("task_id", "run_id", "node_id"):
        assert isinstance(inspect.getattr_static(type(TaskIdentity), name), property), AFTER_AN_UPDATE
    assert Run.create_empty(run_id=5).run_id == 5, AFTER_AN_UPDATE
    grid = _grid(_echo, "a")
    message = _question(next(iter(grid.get_node_ids())))
    assert "_message_id" in message.metadata.__dict__, AFTER_AN_UPDATE
    (message_id,) = grid.push_messages([message])
    assert message.metadata.message_id == message_id, AFTER_AN_UPDATE
    (reply,) = grid.pull_messages([message_id])
    assert reply.metadata.reply_to_message_id == message_id, AFTER_AN_UPDATE
    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == CLIENT_APP_RAISED_EXCEPTION, AFTER_AN_UPDATE


def test_it_is_a_grid_of_flower() -> None:
    grid = _grid(_echo, "a", "b")
    assert isinstance(grid, Grid)
    assert list(grid.get_node_ids()) == [1000, 1001]
    assert grid.run.run_id == grid.server_context.run_id
    grid.set_run(grid.run)
    message = grid.create_message(RecordDict(), MessageType.QUERY, 1000, "1")
    (reply,) = grid.send_and_receive([message])
    assert _seen(reply) == "a"


def test_each_node_sees_its_own_configuration_and_the_run_config() -> None:
    grid = _grid(_echo, "a", "b")
    replies = grid.send_and_receive([_question(node) for node in grid.get_node_ids()])
    assert [dict(reply.content.config_records["seen"]) for reply in replies] == [
        {"site": "a", "composed": "x"},
        {"site": "b", "composed": "x"},
    ]
    assert dict(grid.server_context.node_config) == {"runs-dir": "y"}
    assert dict(grid.server_context.run_config) == {"composed": "x"}


def test_nodes_work_one_at_a_time_and_only_when_they_are_asked_for() -> None:
    worked: list[str] = []

    def work(message: Message, context: Context) -> Message:
        worked.append(str(context.node_config["site-folder"]))
        return _echo(message, context)

    grid = _grid(work, "a", "b", "c")
    ids = list(grid.push_messages([_question(node) for node in grid.get_node_ids()]))
    assert worked == []
    assert [_seen(reply) for reply in grid.pull_messages(ids[1:])] == ["b"]
    assert [_seen(reply) for reply in grid.pull_messages(ids)] == ["a"]
    assert [_seen(reply) for reply in grid.pull_messages(ids)] == ["c"]
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.pull_messages(["unknown"])) == []
    assert worked == ["b", "a", "c"]


def test_exception_of_a_client_becomes_an_error_reply() -> None:
    def broken(message: Message, context: Context) -> Message:
        if context.node_config["site-folder"] == "a":
            raise ValueError("boom")
        return _echo(message, context)

    grid = _grid(broken, "a", "b")
    ids = list(grid.push_messages([_question(node) for node in grid.get_node_ids()]))
    (failed,), (fine,) = (list(grid.pull_messages([message_id])) for message_id in ids)
    assert failed.has_error()
    assert failed.error.code == CLIENT_APP_RAISED_EXCEPTION
    assert "boom" in str(failed.error.reason)
    assert failed.metadata.reply_to_message_id == ids[0]
    assert _seen(fine) == "b"


def test_message_of_a_kind_without_a_handler_is_an_error_reply() -> None:
    grid = _grid(_echo, "a")
    (reply,) = grid.send_and_receive([Message(RecordDict(), dst_node_id=1000, message_type=MessageType.TRAIN)])
    assert reply.has_error()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_persons_stop_passes_through(stop: type[BaseException]) -> None:
    def stopped(_message: Message, _context: Context) -> Message:
        raise stop

    grid = _grid(stopped, "a")
    ids = list(grid.push_messages([_question(1000)]))
    with pytest.raises(stop):
        grid.pull_messages(ids)


def test_study_runs_in_this_process_by_the_real_apps(study: SmallStudy, tmp_path: Path) -> None:
    study = study.with_settings("rounds=1")
    run_in_process(study.config, study.runs, study.hospitals)
    assert [end.status for end in study.events(RunFinished)] == ["complete"]
    assert read_model(study.folder / "model").card.round == 1
