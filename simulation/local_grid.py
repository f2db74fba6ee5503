"""A Flower Grid without a network: it calls the ClientApp directly, so a rehearsal needs no daemon and starts in seconds.

The apps are the very ones of a deployment and see the same messages and contexts. Clients run one after the other, each when
its reply is asked for, or side by side in worker processes (`site_workers`). An exception of a client becomes an error reply,
as in a deployment; only a person's Ctrl-C passes through. Leans on three of Flower's internals (`TaskIdentity`,
`Run.create_empty`, a message's id), which a test watches, since the version is pinned.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from panfm import recipes
from panfm.config import FaultConfig, RunConfig
from panfm.reporting.record import read_record
from server.app import app as server_app
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord
from simulation.faults import planned_faults
from simulation.faulty_grid import FaultyGrid
from simulation.parked import Parked, Shelf
from simulation.site_faults import struck, without_order
from simulation.site_workers import SiteWorkers

CLIENT_APP_RAISED_EXCEPTION = 2
"""Flower's error code for a ClientApp that raised."""

PATIENCE_S = 0.05
"""How long one look for a reply waits for the workers; the coordinator asks for one reply after the other."""

_FIRST_NODE = 1000

Scalar = bool | int | float | str


class LocalGrid(Grid):
    """All nodes of a rehearsal, in this process."""

    def __init__(
        self,
        app: ClientApp,
        node_configs: Sequence[Mapping[str, Scalar]],
        run_config: Mapping[str, Scalar],
        server_config: Mapping[str, Scalar],
        workers: SiteWorkers | None = None,
    ) -> None:
        """Set the rehearsal up.

        Args:
            app: the app of every site.
            node_configs: what each site's SuperNode would be started with.
            run_config: what the run is submitted with; every app sees it.
            server_config: what only the coordinator's program knows.
            workers: processes in which the sites answer with that same app; None: they answer in this one.
        """
        self._app, self._workers = app, workers
        run_id = workers.run_id if workers else new_run_id()
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
        self._run = Run.create_empty(run_id=run_id)
        self._contexts = {
            _FIRST_NODE + place: _context(run_id, _FIRST_NODE + place, node_config, run_config)
            for place, node_config in enumerate(node_configs)
        }
        self.server_context = _context(run_id, 1, server_config, run_config)
        self._shelf = Shelf()
        self._waiting: dict[str, Parked] = {}

    def set_run(self, run: Run) -> None:
        """Take the run's description; part of Flower's interface."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to a node; part of Flower's interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All sites of the rehearsal."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put messages before their nodes; they are worked on when their replies are asked for."""
        ids = []
        for message in messages:
            message_id = message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            parked = self._waiting[message_id] = self._shelf.park(message)
            if self._workers:
                self._workers.put(message_id, parked, self._contexts[message.metadata.dst_node_id])
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The next reply among those asked for; without workers its node works now, with them one may be ready or not."""
        wanted = set(message_ids)
        if self._workers:
            return self._from_workers(self._workers, wanted)
        for message_id in self._waiting:
            if message_id in wanted:
                return [self._reply(self._waiting.pop(message_id).take())]
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send all and wait for all; part of Flower's interface."""
        ids = self.push_messages(messages)
        return [reply for message_id in ids for reply in self.pull_messages([message_id])]

    def _from_workers(self, workers: SiteWorkers, wanted: Collection[str]) -> list[Message]:
        taken = workers.take(wanted, PATIENCE_S)
        if taken is None:
            return []
        message_id, reply = taken
        label = self._waiting.pop(message_id).label
        return [reply or _error("the site's process died", label)]

    def _reply(self, message: Message) -> Message:
        return answer_with(self._app, message, self._contexts[message.metadata.dst_node_id])


def answer_with(app: ClientApp, message: Message, context: Context) -> Message:
    """The app's reply; as Flower does it, what a client raises becomes an error reply."""
    try:
        fault = without_order(message)
        return struck(fault, lambda: app(message, context)) if fault else app(message, context)
    except Exception as error:
        return _error(f"{type(error)}:<'{error}'>", message)


def answer_as_site(message: Message, context: Context) -> Message:
    """What a worker process does with a message."""
    return answer_with(client_app, message, context)


def _error(reason: str, message: Message) -> Message:
    return Message(Error(code=CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message)


def new_run_id() -> int:
    """A number for a run, as large as Flower's are."""
    return uuid.uuid4().int >> 65


def _context(run_id: int, node: int, node_config: Mapping[str, Scalar], run_config: Mapping[str, Scalar]) -> Context:
    return Context(
        run_id=run_id, node_id=node, node_config=dict(node_config), state=RecordDict(), run_config=dict(run_config)
    )


def run_in_process(config: RunConfig, runs: Path, hospitals: Mapping[str, Path]) -> None:
    """Run the study with the coordinator's app in this process, and the sites' in it or, with `workers`, in others.

    Args:
        runs: the coordinator's folder for runs.
        hospitals: site -> its folder.
    Raises: whatever the coordinator's app raises.
    """
    side_by_side = min(config.workers, len(hospitals))
    with SiteWorkers(answer_as_site, side_by_side, new_run_id()) if config.workers > 1 else nullcontext() as workers:
        local = LocalGrid(
            client_app,
            [{"site-folder": str(folder)} for folder in hospitals.values()],
            {"composed": recipes.to_yaml(config)},
            {"runs-dir": str(runs)},
            workers,
        )
        if config.faults.rate == 0:
            server_app(local, local.server_context)
            return
        try:
            grid = FaultyGrid(local, config.faults, dict(zip(local.get_node_ids(), hospitals, strict=True)))
            server_app(grid, local.server_context)
        finally:
            _tell_faults(config.faults, runs / config.run_name)


def _tell_faults(faults: FaultConfig, run_folder: Path) -> None:
    """Put on record what was made to go wrong, where there is a record."""
    if (path := run_folder / RECORD_FILE).exists():
        RunRecord(run_folder).write(planned_faults(faults, read_record(path)))
