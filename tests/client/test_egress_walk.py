"""A whole rehearsal, every message of it in both directions, byte by byte: no pseudonym, no path, no voxel.

Messages are taken apart as Flower itself does before it sends them. Distinctive voxel values are planted in each hospital's
prepared scans beforehand, and looked for as float16, float32 and float64 in both byte orders, and as text. What such a search
cannot see: a value that was encrypted, compressed or spread over the bits of a delta; that is why code is approved, and why the
small study compresses nothing.

The second half shows that the search finds what it should: it plants leaks, and finds them.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import csv
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

import client.app
from client import participation
from client.workspace import Workspace
from panfm.data.store import TABLE, PreparedStore
from panfm.errors import PanfmError
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.protocol import Answer, Refusal, Signed, TrainTask
from panfm.reporting.record import SiteAnswered
from panfm.site.egress import Released
from panfm.site.policy import Policy
from panfm.wire.parcels import Parcel
from server.run_folder import RECORD_FILE
from server.study import conduct
from tests.client.small_study import SmallStudy, SpyGrid

PLANTED = np.asarray([2.7168, -1.4141, 3.1406, -0.5771, 1.6182, -2.2363, 1.7324, -2.6445], dtype=np.float16)
"""Voxels in a row, within the range of normalised intensities; no constant of the model has these values."""

Needles = dict[str, bytes]
"""What is looked for, by what it would tell."""


def sent_bytes(message: Message) -> bytes:
    """Everything of a message that Flower sends: its parts, each as it is put on the wire."""
    return b"\0".join(part.deflate() for part in get_all_nested_objects(message).values())


def plant(folder: Path) -> None:
    """Put the distinctive voxels into every prepared scan of a hospital, and set the digests right."""
    table = folder / "store" / TABLE
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        path = folder / "store" / row["file"]
        volume = np.load(path)
        middle = tuple(side // 2 for side in volume.shape[:2])
        volume[middle][: PLANTED.size] = PLANTED
        np.save(path, volume)
        row["digest"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def needles_of(folders: Iterable[Path]) -> Needles:
    """Pseudonyms and paths of the hospitals, and the planted voxels in every form in which numbers are written."""
    found: Needles = {}
    for folder in folders:
        subjects = sorted({entry.subject for entry in PreparedStore.open(folder / "store").entries})
        found |= {f"subject {subject}": subject.encode() for subject in subjects}
        found |= {f"subject {subject} in UTF-16": subject.encode("utf-16-le") for subject in subjects}
        found |= {f"path {place}": str(place).encode() for place in (folder, folder.parent, folder / "store")}
    return found | dict(_voxels())


def _voxels() -> Iterator[tuple[str, bytes]]:
    # Eight bytes each, so that no run of a million random ones holds one by chance: 4 float16, 2 float32 or 1 float64.
    for kind, together in (("f2", 4), ("f4", 2), ("f8", 1)):
        for order in "<>":
            for start in range(0, PLANTED.size, together):
                run = PLANTED[start : start + together]
                yield f"voxels {run.tolist()} as {order}{kind}", run.astype(f"{order}{kind}").tobytes()
    for value in PLANTED.tolist():
        yield f"voxel {value} as text", repr(value)[:7].encode()  # the digits that a longer number begins with, too


def leaks(passed: Iterable[bytes], needles: Needles) -> set[str]:
    """Names of the needles that any message holds."""
    return {name for message in passed for name, needle in needles.items() if needle in message}


def _all_sent(grid: SpyGrid) -> list[bytes]:
    return [sent_bytes(message) for _, message in (*grid.sent, *grid.received)]


@pytest.fixture
def planted(study: SmallStudy) -> SmallStudy:
    for folder in study.hospitals.values():
        plant(folder)
    return study


def test_no_byte_of_a_whole_rehearsal_tells_of_a_person(planted: SmallStudy) -> None:
    needles = needles_of(planted.hospitals.values())
    assert len(needles) > 80
    grid = planted.conduct()

    messages = _all_sent(grid)
    kinds = [message.metadata.message_type for _, message in grid.sent]
    assert (kinds.count("query"), kinds.count("train"), len(grid.received)) == (3, 6, 9), "every message was seen"
    assert [answer.outcome for answer in planted.events(SiteAnswered)] == ["accepted"] * 6
    assert sum(map(len, messages)) > 1_000_000, "tensors are part of what is searched"
    record = (planted.folder / RECORD_FILE).read_bytes()
    assert leaks([*messages, record], needles) == set()


def test_what_is_planted_is_what_trains(planted: SmallStudy) -> None:
    """Else the search would look for what was never there."""
    folder = planted.hospitals["neuro"]
    for entry in PreparedStore.open(folder / "store").entries:
        assert leaks([(folder / "store" / entry.file).read_bytes()], dict(_voxels()))


# The search can fail: leaks that are planted are found.


def _trained_by(kind: str, subject: str) -> Any:
    """Training code that hides something of a person in what it returns."""

    def train(*arguments: Any, **settings: Any) -> TrainedRound:
        done = train_round(*arguments, **settings)
        metrics, deltas = done.metrics, done.deltas
        if kind == "a name in a metric":
            metrics = replace(metrics, share={**metrics.share, subject: 0.5})
        elif kind == "a name of a tensor":
            deltas = deltas | {f"trunk.{subject}": torch.zeros(1)}
        elif kind == "a voxel in a metric":
            metrics = replace(metrics, seconds=float(PLANTED[0]))
        else:
            name = next(name for name, delta in deltas.items() if delta.numel() >= PLANTED.size)
            hidden = deltas[name].clone()
            hidden.view(-1)[: PLANTED.size] = torch.from_numpy(PLANTED).float()
            deltas = deltas | {name: hidden}
        return replace(done, metrics=metrics, deltas=deltas)

    return train


def _search(study: SmallStudy) -> tuple[set[str], set[str]]:
    """What one round of one hospital leaks, and what became of its answers."""
    study = study.with_settings("rounds=1", "federation.min_sites=1")
    grid = study.grid()
    with contextlib.suppress(PanfmError):  # where an answer is stopped, an organ stays untrained
        conduct(study.settings(), grid)
    return leaks(_all_sent(grid), needles_of(study.hospitals.values())), {a.reason for a in study.events(SiteAnswered)}


def _no_gate(answer: Answer, _policy: Policy, _asked: Signed | None, parcels: Sequence[Parcel] = ()) -> Released:
    return Released(answer=answer, parcel=next(iter(parcels), None))


@pytest.fixture
def alone(planted: SmallStudy) -> SmallStudy:
    """One hospital is enough for a leak."""
    return replace(planted, hospitals={"abdominal": planted.hospitals["abdominal"]})


@pytest.mark.parametrize("kind", ["a name in a metric", "a name of a tensor", "a voxel in a metric"])
def test_leak_is_found_where_the_gate_stands_open(
    alone: SmallStudy, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    subject = PreparedStore.open(alone.hospitals["abdominal"] / "store").entries[0].subject
    monkeypatch.setattr(participation, "train_round", _trained_by(kind, subject))
    monkeypatch.setattr(client.app, "release", _no_gate)
    found, _ = _search(alone)
    assert (f"subject {subject}" if "name" in kind else f"voxel {PLANTED.tolist()[0]} as text") in found


@pytest.mark.parametrize("kind", ["a name in a metric", "a voxel in a metric"])
def test_gate_stops_a_name_and_rounds_a_voxel(alone: SmallStudy, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    subject = PreparedStore.open(alone.hospitals["abdominal"] / "store").entries[0].subject
    monkeypatch.setattr(participation, "train_round", _trained_by(kind, subject))
    found, answers = _search(alone)
    assert found == set()
    (answer,) = answers
    assert answer.startswith("site_egress") == ("name" in kind), "of a voxel, 2.717 leaves in place of 2.716796875"


def test_voxels_in_a_delta_are_found_by_the_search_and_not_by_the_gate(
    alone: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the gate cannot do, said by a test: an update without noise is what approved code makes of it."""
    monkeypatch.setattr(participation, "train_round", _trained_by("voxels in a delta", ""))
    found, answers = _search(alone)
    assert {name.split(" as ")[1] for name in found} == {"<f4"}
    assert answers == {""}


def test_path_in_the_words_of_a_refusal_is_found_without_the_gate_and_stopped_by_it(
    alone: SmallStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talkative(task: TrainTask, workspace: Workspace) -> Refusal:
        words = f"nothing in {workspace.folder}"
        return Refusal(run=task.run, round=task.round, site=workspace.policy.site, code="no_organ", reason=words)

    monkeypatch.setattr(client.app, "take_part", talkative)
    found, answers = _search(alone)
    assert found == set()
    assert all(words.startswith("site_egress") for words in answers)

    shutil.rmtree(alone.folder)
    monkeypatch.setattr(client.app, "release", _no_gate)
    found, _ = _search(alone)
    assert {f"path {folder}" for folder in alone.hospitals.values()} <= found
