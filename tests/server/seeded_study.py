"""A study without scans: its sites answer by a seeded function of the task, so that a run of it takes a fraction of a second.

What a site answers depends on every bit of the model that it was sent and on which of its updates counted, so two runs that
differ anywhere end with different models.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from client.messages import decode_task
from panfm import recipes
from panfm.config import Encoding, RunConfig
from panfm.groups import SHARED_GROUPS, split_by_group
from panfm.pretrain.private_scope import trained_names
from panfm.protocol import (
    PROTOCOL_VERSION,
    Answer,
    EvaluateTask,
    EvaluationMetrics,
    JoinAnswer,
    PrivacySpent,
    Refusal,
    SiteReport,
    SiteUpdate,
    TrainTask,
    to_envelope,
)
from panfm.reporting.record import Event, end_of, read_record
from panfm.wire.parcels import Parcel, pack_tensors
from server.run_folder import RECORD_FILE
from server.study import StudySettings, conduct
from simulation.local_grid import LocalGrid
from tests.client.small_study import HELD, metrics, site_of

E_co = TypeVar("E_co", bound=Event)

Fault = Callable[[TrainTask], dict[str, Any] | Refusal]
"""What a site's answer holds instead of what it should, or a refusal, or an exception."""


@dataclass(frozen=True)
class SeededStudy:
    """One study in a folder of its own."""

    runs: Path
    config: RunConfig
    faults: Mapping[tuple[str, int], Fault] = field(default_factory=dict)
    """(site, round) -> what goes wrong there, each time."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    """(site, round) of each task that came to a site."""
    evaluated: list[tuple[str, int]] = field(default_factory=list)
    """The same of evaluations."""

    @property
    def folder(self) -> Path:
        return self.runs / self.config.name

    def conduct(self, *, resume: bool = False, sites: Collection[str] = tuple(HELD)) -> None:
        """Begin it, or go on with it."""
        config = replace(self.config, name="", resume=self.config.name) if resume else self.config
        conduct(StudySettings(config=config, runs=self.runs), self.grid(sites))

    def go_on(self) -> None:
        """Go on with it, or begin it if it died before it had begun."""
        self.conduct(resume=bool(self.all_events()))

    def is_over(self) -> bool:
        """Whether its record says so."""
        return end_of(self.all_events()) is not None

    def grid(self, sites: Collection[str] = tuple(HELD)) -> Grid:
        nodes = [{"site-folder": f"/nowhere/{site}"} for site in sites]
        return LocalGrid(self._app(), nodes, {}, {"runs-dir": str(self.runs)})

    def all_events(self) -> list[Event]:
        path = self.folder / RECORD_FILE
        return list(read_record(path)) if path.exists() else []

    def events(self, kind: type[E_co]) -> list[E_co]:
        return [event for event in read_record(self.folder / RECORD_FILE) if isinstance(event, kind)]

    def _app(self) -> ClientApp:
        app = ClientApp()

        @app.query()
        def join(message: Message, context: Context) -> Message:
            site = site_of(context)
            return _reply(
                JoinAnswer(site=site, organs=HELD[site], protocol_version=PROTOCOL_VERSION, panfm_version="0"), message
            )

        @app.train()
        def train(message: Message, context: Context) -> Message:
            task = decode_task(message)
            assert isinstance(task, TrainTask)
            self.asked.append((task.site, task.round))
            fault = self.faults.get((task.site, task.round))
            changes = fault(task) if fault else {}
            if isinstance(changes, Refusal):
                return _reply(changes, message)
            answer = replace(seeded_update(task), **changes)
            (parcel,) = pack_tensors(answer.deltas, Encoding.fp32)
            return _reply(replace(answer, deltas={}, parcels=(parcel.label,)), message, parcel)

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            task = decode_task(message)
            assert isinstance(task, EvaluateTask)
            self.evaluated.append((task.site, task.round))
            return _reply(seeded_report(task), message)

        return app


def seeded_study(runs: Path, *overrides: str, **faults: Fault) -> SeededStudy:
    """A study of the three hospitals of the recipe `smoke`, with a model as small as there is.

    Args:
        faults: by site and round, as `neuro_2`.
    """
    placed = {(name.rpartition("_")[0], int(name.rpartition("_")[2])): fault for name, fault in faults.items()}
    return SeededStudy(runs=runs, config=_config(*overrides), faults=placed)


@cache
def _config(*overrides: str) -> RunConfig:
    tiny = ["model.width=12", "model.heads=2", "model.depth=1", "model.adapter_width=2", "model.predictor_width=4"]
    server = ["federation.retries=0", "federation.server.optimiser=fedadam", "federation.server.rate=0.01"]
    return recipes.load(["recipe=smoke", "name=seeded", *tiny, *server, *overrides])


def seeded_update(task: TrainTask) -> SiteUpdate:
    """An answer without training."""
    words = f"{task.site} {task.round} {sorted(task.voted.items())}{task.ledger_witness}"
    generator = torch.Generator().manual_seed(sum(place * ord(letter) for place, letter in enumerate(words, start=1)))
    deltas = {
        name: 0.3 * (task.teacher[name] - tensor) + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in sorted(task.student.items())
    }
    organs = sorted(set(split_by_group(task.student)) - {*SHARED_GROUPS})
    counts = {organ: 3 + len(organ) for organ in organs}
    recipe = recipes.recipe_from_yaml(task.recipe)
    is_private = recipe.privacy.is_on
    if is_private:
        trained = trained_names(deltas, recipe.privacy.mode, recipe, organs)
        deltas = {name: deltas[name] for name in trained}
    return SiteUpdate(
        run=task.run,
        round=task.round,
        site=task.site,
        task_digest=task.digest(),
        deltas=deltas,
        num_subjects=sum(counts.values()),
        organ_subjects=counts,
        num_steps=2,
        metrics=None if is_private else metrics(),
        privacy=seeded_spent(task) if is_private else None,
    )


def seeded_spent(task: TrainTask) -> PrivacySpent:
    """What a site tells of a ledger to which each round adds two lines and an epsilon of a tenth."""
    digest = hashlib.sha256(f"{task.site} {task.round} {task.ledger_witness}".encode()).hexdigest()
    return PrivacySpent(epsilon=0.1 * task.round, delta=1e-5, budget=3.0, ledger_head=f"{digest}:{2 * task.round}")


def seeded_report(task: EvaluateTask) -> SiteReport:
    """A report without a look at anything: its loss is a function of the model."""
    loss = float(sum(tensor.square().sum() for tensor in task.student.values()))
    told = EvaluationMetrics(
        loss=loss,
        loss_patch=loss,
        loss_organ=None,
        collapse_loss=1.0,
        share={},
        lift={},
        share_entropy=None,
        probes={},
        seconds=0.1,
    )
    return SiteReport(
        run=task.run,
        round=task.round,
        site=task.site,
        task_digest=task.digest(),
        num_subjects=3,
        organ_subjects={},
        metrics=told,
    )


def _reply(answer: Answer, message: Message, parcel: Parcel | None = None) -> Message:
    envelope = to_envelope(answer)
    content = RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    if parcel is not None:
        content["parcel"] = ArrayRecord({"body": Array(np.frombuffer(parcel.body, np.uint8))})
    return Message(content, reply_to=message)


class Death(BaseException):
    """Stands in for kill -9: nothing in the program expects it."""


@dataclass
class Steps:
    """Durable steps that were done, and at which the process dies."""

    last: float
    done: int = 0


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, last: float = float("inf")) -> Iterator[Steps]:
    """Die before or after a durable step: whatever is flushed, renamed or removed.

    Each call counts twice, before and after. A line of the record that was being written is left half written.
    """
    steps = Steps(last)

    def step(half_written: str = "") -> None:
        steps.done += 1
        if steps.done <= steps.last:
            return
        if half_written.endswith(RECORD_FILE):
            _tear(Path(half_written))
        raise Death

    def fsync(descriptor: int) -> None:
        step(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)
        step()

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> None:
            step()
            real(*arguments, **named)
            step()

        return call

    real_fsync = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", around(os.replace))
        patch.setattr(shutil, "rmtree", around(shutil.rmtree))
        yield steps


def _tear(record: Path) -> None:
    content = record.read_bytes()
    begin = content.rstrip(b"\n").rfind(b"\n") + 1
    record.write_bytes(content[: begin + (len(content) - begin) // 2])
