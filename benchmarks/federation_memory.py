"""How much memory does the coordinator's program need, and does it grow with the number of sites? And how large are messages?

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/federation_memory.py [--quick]` on a machine that does nothing else (five
minutes, 6 GB of disk); it prints the table and writes it to `benchmarks/federation_memory.md` (with --quick it takes the small
model and only prints).

The real ServerApp conducts a study of one round with the base model, each time in a process of its own: tasks out, answers in,
the mean, the checkpoint, the exported model. Sites hold two of seven organs each. They answer from another process through a pipe
(random deltas, no training), so that none of their memory is counted; like Flower's own grid, the pipe makes a copy of a message
as it is sent. Memory is the process's peak (Linux) from the first task to the end, over what it held after a study with the tiny
model, when everything was imported. MALLOC_MMAP_THRESHOLD_ is set to 1 MiB, so that what is freed is given back at once: by
itself glibc raises the threshold to 32 MiB as the program runs, and keeps holes of the size of tensors.

- *model*: student and teacher of all groups in fp32, which the program holds throughout.
- *beyond it*: the peak without the model, in models. Down in bf16 it holds a second model, the one that sites receive; and at the
  end of every run it reads the exported model back while it still holds its own.
- *one reply*: four times the largest message: as it came, its parcel, that unpacked, and its tensors.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

import panfm
from benchmarks.machine import provenance
from panfm import recipes
from panfm.config import RunConfig
from panfm.organs import SEVEN_ORGANS
from panfm.protocol import (
    PROTOCOL_VERSION,
    Answer,
    AnswerParcel,
    Envelope,
    JoinAnswer,
    ParcelKept,
    ParcelRequest,
    SiteUpdate,
    TaskParcel,
    TrainTask,
    from_envelope,
    to_envelope,
)
from panfm.reporting.record import RunStarted, SiteAnswered, read_record
from panfm.wire.parcels import Parcel, pack_tensors, parcel_of, unpack_tensors
from server.messages import parcel_body, size_bytes
from server.run_folder import RECORD_FILE
from server.study import StudySettings, conduct
from simulation.local_grid import LocalGrid

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--quick" in sys.argv
NUM_SITES = (2, 4) if QUICK else (2, 8, 16)
WIRES = {"fp32 down, fp32 up": ("fp32", "fp32"), "bf16 down, int8 up": ("bf16", "int8")}
MODELS = 1.05
"""Held to: models beyond the one that the program holds, besides the reply being decoded; one, and a little that is no tensor."""
REPLY = 4
"""Times a message that the reply being decoded takes; see above."""
FLAT = 0.05
"""Held to: models by which the peak may differ between the fewest and the most sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One study."""

    sites: int
    peak_mb: float
    model_mb: float
    largest_message_mb: float
    messages: int
    """To and from each site, the question who it is left out."""
    down_mb: float
    up_mb: float
    """Of the first site."""
    seconds: float

    @property
    def beyond(self) -> float:
        """Models beyond the one that the program holds."""
        return self.peak_mb / self.model_mb - 1


# ---- the sites, in a process of their own -------------------------------------------------------------------------------


@dataclass(slots=True)
class Sites:
    """What all sites of a study would say, from one process."""

    folder: Path
    waiting: dict[str, Message] = field(default_factory=dict)
    answers: dict[str, Path] = field(default_factory=dict)
    """Digest of an answer's parcel -> its file."""

    def answer(self, message: Message) -> Message:
        """The reply to any message."""
        node = message.metadata.dst_node_id
        if not message.content:
            return _reply(message, joined(node), None)
        envelope = message.content.config_records["envelope"]
        asked = from_envelope(Envelope(kind=str(envelope["kind"]), header=str(envelope["header"])))
        body = parcel_body(message)
        if isinstance(asked, ParcelRequest):
            where = AnswerParcel(run=asked.run, round=asked.round, site=asked.site, sha256=asked.sha256)
            return _reply(message, where, Parcel(self.answers[asked.sha256].read_bytes(), asked.sha256))
        assert body is not None
        if isinstance(asked, TaskParcel):
            (self.folder / asked.sha256).write_bytes(body)
            return _reply(
                message, ParcelKept(run=asked.run, round=asked.round, site=asked.site, sha256=asked.sha256), None
            )
        assert isinstance(asked, TrainTask)
        return _reply(message, *self._update(asked, parcel_of(body)))

    def _update(self, header: TrainTask, last: Parcel) -> tuple[SiteUpdate, Parcel]:
        task = self._whole(header, last)
        wire = recipes.recipe_from_yaml(task.recipe).federation.wire
        draws = torch.Generator().manual_seed(int(task.digest()[:8], 16))
        deltas = {name: torch.randn(t.shape, generator=draws) * 1e-3 for name, t in sorted(task.student.items())}
        labels = []
        for parcel in pack_tensors(deltas, wire.up, wire.zstd_level, wire.parcel_bytes):
            labels.append(parcel.label)
            self.answers[parcel.sha256] = self.folder / parcel.sha256
            self.answers[parcel.sha256].write_bytes(parcel.body)
        organs = {name.split(".")[1] for name in task.student if name.startswith("organs.")}
        update = SiteUpdate(
            run=task.run,
            round=task.round,
            site=task.site,
            task_digest=task.digest(),
            deltas={},
            num_subjects=50,
            organ_subjects=dict.fromkeys(sorted(organs), 50),
            num_steps=1,
            metrics=None,
            parcels=tuple(labels),
        )
        return update, Parcel(self.answers[labels[0].sha256].read_bytes(), labels[0].sha256)

    def _whole(self, header: TrainTask, last: Parcel) -> TrainTask:
        ahead = [Parcel((self.folder / label.sha256).read_bytes(), label.sha256) for label in header.parcels[:-1]]
        came = unpack_tensors([*ahead, last])
        student, teacher = (
            {name[8:]: tensor for name, tensor in came.items() if name.startswith(part)}
            for part in ("student", "teacher")
        )
        return replace(header, student=student, teacher=teacher)


def joined(node: int) -> JoinAnswer:
    """Two organs a site, each organ at about as many sites."""
    organs = sorted({SEVEN_ORGANS[node * 2 % 7], SEVEN_ORGANS[(node * 2 + 1) % 7]}, key=SEVEN_ORGANS.index)
    return JoinAnswer(
        site=f"site-{node}",
        organs=tuple(organs),
        protocol_version=PROTOCOL_VERSION,
        panfm_version=panfm.__version__,
        num_subjects=dict.fromkeys(organs, 50),
        torch_version=torch.__version__,
        device="cpu",
    )


def _reply(message: Message, answer: Answer, parcel: Parcel | None) -> Message:
    envelope = to_envelope(answer)
    content = RecordDict({"envelope": ConfigRecord({"kind": envelope.kind, "header": envelope.header})})
    if parcel is not None:
        content["parcel"] = ArrayRecord({"body": Array(np.frombuffer(parcel.body, np.uint8))})
    return Message(content, reply_to=message)


def serve(connection: Connection, folder: str) -> None:
    """Keep messages and answer those that are asked for, until the pipe ends."""
    torch.set_num_threads(1)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    sites = Sites(Path(folder))
    while True:
        try:
            message_id, message = connection.recv()
        except EOFError:
            return
        if message is None:
            connection.send(sites.answer(sites.waiting.pop(message_id)))
        else:
            sites.waiting[message_id] = message


# ---- the coordinator ----------------------------------------------------------------------------------------------------


class PipeGrid(LocalGrid):
    """Nodes at the other end of a pipe; it watches sizes, and from the first task on the peak of memory."""

    def __init__(self, connection: Connection, num_sites: int) -> None:
        super().__init__(ClientApp(), [{}] * num_sites, {}, {})
        self._connection = connection
        self.sizes: list[int] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            if message.content and not self.sizes:
                forget_peak()
            message_id = message.metadata.__dict__["_message_id"] = f"m{time.monotonic_ns()}"
            self._connection.send((message_id, message))
            self._count(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            self._connection.send((message_id, None))
            reply = self._connection.recv()
            self._count(reply)
            return [reply]
        return []

    def _count(self, message: Message) -> None:
        if message.content and "join_answer" not in str(message.content.config_records["envelope"]["kind"]):
            self.sizes.append(size_bytes(message))


def forget_peak() -> None:
    """Let the peak of this process's memory begin now."""
    Path("/proc/self/clear_refs").write_text("5")


def status_mb(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 * 1.024 for line in lines if line.startswith(name + ":"))


def settings(model: str, down: str, up: str, sites: int, runs: Path) -> StudySettings:
    """A study of one round."""
    config: RunConfig = recipes.load(
        [
            "recipe=demo",
            f"model={model}",
            f"name=memory-{model}",
            "rounds=1",
            f"federation.min_sites={sites}",
            f"federation.wire.down={down}",
            f"federation.wire.up={up}",
            *(["federation.wire.parcel_mb=8"] if QUICK else []),
        ]
    )
    return StudySettings(config=config, runs=runs)


def measure(down: str, up: str, sites: int) -> Measured:
    """One study in this process."""
    torch.set_num_threads(1)
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("sites", "runs"):
            (Path(folder) / name).mkdir()
        process = processes.Process(target=serve, args=(theirs, f"{folder}/sites"), daemon=True)
        process.start()
        theirs.close()
        runs = Path(folder) / "runs"
        try:
            conduct(settings("tiny", down, up, 2, runs), PipeGrid(ours, 2))
            study, grid = settings("small" if QUICK else "base", down, up, sites, runs), PipeGrid(ours, sites)
            empty_mb, began = status_mb("VmRSS"), time.monotonic()
            conduct(study, grid)
            peak_mb, seconds = status_mb("VmHWM") - empty_mb, time.monotonic() - began
        finally:
            ours.close()
            process.join()
        return _measured(study, grid, sites, peak_mb, seconds)


def _measured(study: StudySettings, grid: PipeGrid, sites: int, peak_mb: float, seconds: float) -> Measured:
    events = list(read_record(study.runs / study.config.name / RECORD_FILE))
    parameters = next(event.group_parameters for event in events if isinstance(event, RunStarted))
    answers = [event for event in events if isinstance(event, SiteAnswered)]
    assert [answer.outcome for answer in answers] == ["accepted"] * sites, [answer.reason for answer in answers]
    return Measured(
        sites=sites,
        peak_mb=peak_mb,
        model_mb=2 * 4 * sum(parameters.values()) / 1e6,
        largest_message_mb=max(grid.sizes) / 1e6,
        messages=len(grid.sizes) // sites,
        down_mb=answers[0].bytes_down / 1e6,
        up_mb=answers[0].bytes_up / 1e6,
        seconds=seconds,
    )


def in_process_of_its_own(down: str, up: str, sites: int) -> Measured:
    """The same in a fresh process, so that no study leaves its memory to the next."""
    command = [sys.executable, __file__, "--measure", down, up, str(sites), *(["--quick"] if QUICK else [])]
    kept = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
    if done.returncode:
        raise SystemExit(done.stderr)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def rows(measured: dict[str, list[Measured]]) -> list[str]:
    """The tables."""
    lines = [
        f"| {wire} | {m.sites} | {m.peak_mb:.0f} MB | {m.beyond:.2f} | {m.messages} | {m.largest_message_mb:.1f} MB "
        f"| {m.down_mb:.1f} MB | {m.up_mb:.1f} MB | {m.seconds:.0f} s |"
        for wire, studies in measured.items()
        for m in studies
    ]
    held = []
    for wire, studies in measured.items():
        reply = REPLY * studies[0].largest_message_mb / studies[0].model_mb
        held.append((f"{wire}: models beyond it, without one reply", max(m.beyond for m in studies) - reply, MODELS))
        held.append((f"{wire}: models between fewest and most sites", studies[-1].beyond - studies[0].beyond, FLAT))
    return [
        "| how tensors travel | sites | peak | beyond the model, models | messages a site | largest message | down a site "
        "| up a site | time |",
        "|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        "| held to | at most | measured | holds |",
        "|---|---|---|---|",
        *(f"| {what} | {most:g} | {came:.2f} | {'yes' if came <= most else '**NO**'} |" for what, came, most in held),
    ]


def main() -> None:
    if "--measure" in sys.argv:
        down, up, sites = sys.argv[sys.argv.index("--measure") + 1 :][:3]
        print(json.dumps(asdict(measure(down, up, int(sites)))))
        return
    measured = {
        wire: [in_process_of_its_own(down, up, sites) for sites in NUM_SITES] for wire, (down, up) in WIRES.items()
    }
    model_mb = next(iter(measured.values()))[0].model_mb
    text = [
        "# What the coordinator's program holds in memory\n",
        f"{provenance()}.\n",
        f"One model (student and teacher of seven organs, fp32) is {model_mb:.0f} MB; sites hold two organs each.\n",
        *rows(measured),
        "\nMade by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/federation_memory.py`, whose first paragraph says what is "
        "measured.",
    ]
    print("\n".join(text))
    if not QUICK:
        (ROOT / "benchmarks" / "federation_memory.md").write_text("\n".join([*text, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
