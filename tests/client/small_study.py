"""The smallest study that the tests of the doors share: three pretend hospitals with eight synthetic subjects each.

Scans are made and prepared once a session; a test gets its own copy of the hospitals' folders, and runs the real apps over
a grid that keeps every message, so that it can be asked what passed.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from client.app import app as client_app
from client.messages import decode_task
from panfm import recipes
from panfm.config import Encoding, RunConfig
from panfm.groups import SHARED_GROUPS, keep_groups, split_by_group
from panfm.models.build import initial_parameters
from panfm.protocol import Answer, Envelope, SiteUpdate, Task, TrainMetrics, TrainTask, expect, to_envelope
from panfm.reporting.record import Event, SiteAnswered, read_record
from panfm.signing import public_hex, sign
from panfm.wire.parcels import Parcel, pack, pack_tensors, parcel_of, unpack_tensors
from server.messages import encode_task, parcel_body
from server.run_folder import RECORD_FILE, coordinator_key
from server.study import StudySettings, conduct
from simulation.hospitals import make_cohort
from simulation.local_grid import LocalGrid

HELD: dict[str, tuple[str, ...]] = {"abdominal": ("liver",), "cardiac": ("heart", "liver"), "neuro": ("brain", "heart")}
"""What the three hospitals of the recipe `smoke` image."""

E_co = TypeVar("E_co", bound=Event)
Train = Callable[[Message, Context], Message]


@cache
def _smoke() -> RunConfig:
    return recipes.load(["recipe=smoke", "federation.wire.zstd_level=0"])  # so that what passes can be searched


def _changed(settings: Any, path: Sequence[str], word: str) -> Any:
    """The settings with one of them changed, checked as Hydra's are, in a fraction of its time."""
    name, *inner = path
    old = getattr(settings, name)
    return replace(settings, **{name: _changed(old, inner, word) if inner else type(old)(word)})


def make_template(folder: Path) -> Path:
    """The hospitals and the coordinator's key as made; to be copied, not used."""
    config = recipes.load(["recipe=smoke", "cohort.probe_subjects=1", "cohort.test_subjects=1"])
    make_cohort(config, folder, public_hex(coordinator_key(folder)), lambda _what, _done, _total: None)
    return folder


@dataclass
class SpyGrid(LocalGrid):
    """The rehearsal's grid, with a copy of the hospital's name and of each message that passes."""

    sent: list[tuple[str, Message]] = field(default_factory=list)
    """(site, message from the coordinator)."""
    received: list[tuple[str, Message]] = field(default_factory=list)
    """(site, reply to the coordinator)."""

    def __init__(self, app: ClientApp, folders: Sequence[Path], run_config: Mapping[str, str], runs: Path) -> None:
        super().__init__(app, [{"site-folder": str(f)} for f in folders], run_config, {"runs-dir": str(runs)})
        self.sent, self.received = [], []
        self._names = {node: folder.name for node, folder in zip(self.get_node_ids(), folders, strict=True)}
        self._site_of: dict[str, str] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        ids = list(super().push_messages(pushed))
        for message_id, message in zip(ids, pushed, strict=True):
            self._site_of[message_id] = self._names[message.metadata.dst_node_id]
            self.sent.append((self._site_of[message_id], message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.received += [(self._site_of[reply.metadata.reply_to_message_id], reply) for reply in replies]
        return replies


@dataclass(frozen=True)
class SmallStudy:
    """One study in a folder of its own."""

    runs: Path
    config: RunConfig
    hospitals: dict[str, Path]

    @property
    def folder(self) -> Path:
        return self.runs / self.config.name

    def settings(self) -> StudySettings:
        return StudySettings(config=self.config, runs=self.runs)

    def grid(self, app: ClientApp = client_app) -> SpyGrid:
        composed = {"composed": recipes.to_yaml(self.config)}
        return SpyGrid(app, list(self.hospitals.values()), composed, self.runs)

    def conduct(self, app: ClientApp = client_app) -> SpyGrid:
        """Run it to its end over a new grid."""
        grid = self.grid(app)
        conduct(self.settings(), grid)
        return grid

    def with_settings(self, *overrides: str, name: str = "") -> SmallStudy:
        """The same hospitals with other settings, of numbers and words."""
        config = replace(_smoke(), name=name or self.config.name)
        for override in overrides:
            path, _, word = override.partition("=")
            config = _changed(config, path.split("."), word)
        return replace(self, config=config)

    def events(self, kind: type[E_co]) -> list[E_co]:
        return [event for event in read_record(self.folder / RECORD_FILE) if isinstance(event, kind)]

    def answered(self, site: str) -> list[SiteAnswered]:
        return [event for event in self.events(SiteAnswered) if event.site == site]


def copy_study(template: Path, folder: Path) -> SmallStudy:
    """A study of its own in `folder`, on a copy of the template's hospitals."""
    shutil.copytree(template / "hospitals", folder / "hospitals", ignore=shutil.ignore_patterns("scans"))
    (folder / "runs").mkdir()
    shutil.copy(template / "coordinator.key", folder / "runs" / "coordinator.key")
    return study_in(folder)


def study_in(folder: Path) -> SmallStudy:
    """The study that was copied into a folder."""
    hospitals = {path.name: path for path in sorted((folder / "hospitals").iterdir())}
    return SmallStudy(runs=folder / "runs", config=replace(_smoke(), name="small"), hospitals=hospitals)


def app_that_trains(train: Train) -> ClientApp:
    """A site's app that joins as panfm does and answers tasks in its own way."""
    app = ClientApp()

    @app.query()
    def join(message: Message, context: Context) -> Message:
        return client_app(message, context)

    @app.train()
    def answer(message: Message, context: Context) -> Message:
        return train(message, context)

    return app


def site_of(context: Context) -> str:
    return Path(str(context.node_config["site-folder"])).name


def fault_at(site: str, fault: Train) -> ClientApp:
    """Panfm's app at every site but one, which answers tasks by `fault`."""
    return app_that_trains(lambda m, c: fault(m, c) if site_of(c) == site else client_app(m, c))


def to_content(envelope: Envelope) -> RecordDict:
    """An envelope as it travels, its tensors as they are in one parcel."""
    if not envelope.tensors:
        return RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    (parcel,) = pack({name.removeprefix("deltas/"): tensor for name, tensor in envelope.tensors.items()})
    header = json.dumps(json.loads(envelope.header) | {"parcels": [asdict(parcel.label)]})
    body = ArrayRecord({"body": Array(np.frombuffer(parcel.body, np.uint8))})
    return RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": header}), "parcel": body})


def packed(answer: SiteUpdate) -> tuple[SiteUpdate, tuple[Parcel, ...]]:
    """An update as a site stores it: without its deltas, and the parcels that hold them."""
    parcels = tuple(pack(answer.deltas))
    return replace(answer, deltas={}, parcels=tuple(parcel.label for parcel in parcels)), parcels


def task_message(task: Task, node: int) -> Message:
    """A task that travels in one message, as the coordinator would send it."""
    parts = {"student": task.student, "teacher": task.teacher}
    tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    (parcel,) = pack_tensors(tensors, Encoding.fp32)
    return encode_task(task, (parcel.label,), parcel, node, 600.0)


def reply_with(answer: Answer, message: Message) -> Message:
    """An answer that passed no gate, as a site with other code would send it."""
    return Message(to_content(to_envelope(answer)), reply_to=message)


def tensors_in(message: Message) -> dict[str, Tensor]:
    """The tensors that came with a message, decoded; of an update under the names of its parameters."""
    body = parcel_body(message)
    return {} if body is None else unpack_tensors([parcel_of(body)])


def tensor_names(message: Message) -> set[str]:
    return set(tensors_in(message))


def all_bytes(message: Message) -> bytes:
    """Every byte that a message carries: names, headers, arrays, an error's words."""
    if message.has_error():
        return str(message.error.reason).encode()
    parts: list[bytes] = []
    for key, record in message.content.items():
        parts.append(key.encode())
        for name, value in record.items():
            parts += [name.encode(), value.data if isinstance(value, Array) else str(value).encode()]
    return b"\0".join(parts)


def same_bits(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left
    )


def metrics(**changes: Any) -> TrainMetrics:
    """Metrics of a healthy round."""
    healthy: dict[str, Any] = {
        "loss": 0.5,
        "loss_patch": 0.5,
        "loss_organ": None,
        "collapse_loss": 0.6,
        "gradient_norm": 1.0,
        "share": {},
        "lift": {},
        "masked_rate": {},
        "share_entropy": None,
        "effective_rank": {},
        "spread": {},
        "seconds": 0.1,
    }
    return TrainMetrics(**(healthy | changes))


def quick_update(task: TrainTask, **changes: Any) -> SiteUpdate:
    """An honest-looking answer without any training: each parameter moves by 0.01."""
    organs = sorted(set(split_by_group(task.student)) - {"trunk", "heads"})
    answer: dict[str, Any] = {
        "run": task.run,
        "round": task.round,
        "site": task.site,
        "task_digest": task.digest(),
        "deltas": {name: torch.full_like(tensor, 0.01) for name, tensor in task.student.items()},
        "num_subjects": 5,
        "organ_subjects": dict.fromkeys(organs, 5),
        "num_steps": 2,
        "metrics": metrics(),
    }
    return SiteUpdate(**(answer | changes))


def quick_train(message: Message, _context: Context) -> Message:
    """Answer a task at once."""
    return reply_with(quick_update(expect(decode_task(message), TrainTask)), message)


Answering = Callable[[Mapping[int, Message]], Message]
"""Makes a reply from the messages that were sent, by node."""


class ScriptedGrid(SpyGrid):
    """A grid that answers each look for replies with the next entry of a script, and then never again."""

    def __init__(self, script: Sequence[Sequence[Answering]], ids: Sequence[str | None] | None = None) -> None:
        super().__init__(client_app, [], {}, Path())
        self._script, self._ids = list(script), ids
        self.asked: dict[int, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = list(messages)
        ids = [f"to-{message.metadata.dst_node_id}" for message in pushed] if self._ids is None else list(self._ids)
        for message, message_id in zip(pushed, ids, strict=False):
            message.metadata.__dict__["_message_id"] = message_id
            self.asked[message.metadata.dst_node_id] = message
        return ids  # type: ignore[return-value]  # Flower itself gives None, against its own annotation

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [answer(self.asked) for answer in self._script.pop(0)] if self._script else []


def signed_task(study: SmallStudy, holder: str, **changes: Any) -> TrainTask:
    """The task of round 1 for the holder of some organs, as the coordinator would sign it."""
    recipe = recipes.recipe_of(study.config)
    groups = (*SHARED_GROUPS, *HELD[holder])
    parameters = keep_groups(initial_parameters(recipe.model, recipe.organs, recipe.seed), groups)
    values: dict[str, Any] = {
        "run": "small-1",
        "round": 1,
        "site": holder,
        "recipe": recipes.to_yaml(recipe),
        "student": parameters,
        "teacher": parameters,
    }
    task = TrainTask(**(values | changes))
    return task.signed(sign(coordinator_key(study.runs), task.digest()))


Finished = tuple[SmallStudy, SpyGrid]


@cache
def _finish(template: Path) -> Finished:
    done = copy_study(template, template.with_name("finished-study"))
    return done, done.conduct()


@pytest.fixture(scope="session")
def hospitals_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by whichever room is tested first, and found by the others."""
    folder = tmp_path_factory.getbasetemp() / "small-study"
    return folder if folder.is_dir() else make_template(folder)


@pytest.fixture
def study(hospitals_template: Path, tmp_path: Path) -> SmallStudy:
    """A study of three hospitals in a folder of its own."""
    return copy_study(hospitals_template, tmp_path)


@pytest.fixture(scope="session")
def finished(hospitals_template: Path) -> Finished:
    """A study that went to its end, with the grid that carried it: to look at, not to change."""
    return _finish(hospitals_template)
