"""A round's tasks are packed once a group, and each site's parcels are its task."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from panfm.config import Encoding, WireConfig
from panfm.groups import keep_groups
from panfm.protocol import TrainTask
from panfm.wire.encoding import as_received
from panfm.wire.parcels import Parcel, pack_tensors, unpack_tensors
from server.outbox import Outbox
from tests.client.small_study import same_bits


def _model(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"trunk.w": (90, 70), "heads.w": (50, 9)} | {f"organs.{o}.w": (60, 50) for o in ("brain", "liver")}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _task(site: str, organs: tuple[str, ...], encoding: Encoding, models: tuple[dict[str, Tensor], ...]) -> TrainTask:
    student, teacher = (keep_groups(model, ("trunk", "heads", *organs)) for model in models)
    return TrainTask(run="r", round=1, site=site, recipe="", student=student, teacher=teacher)


@pytest.mark.parametrize("encoding", [Encoding.fp32, Encoding.bf16])
@pytest.mark.parametrize("parcel_mb", [64.0, 0.012])
def test_parcels_of_a_task_are_its_tensors(tmp_path: Path, encoding: Encoding, parcel_mb: float) -> None:
    wire = WireConfig(down=encoding, parcel_mb=parcel_mb)
    outbox = Outbox(tmp_path, wire)
    models = tuple(as_received(_model(seed), encoding) for seed in (1, 2))
    for site, organs in (("a", ("brain",)), ("b", ("brain", "liver")), ("c", ())):
        task = _task(site, organs, encoding, models)
        labels = outbox.pack(task)
        assert (len(labels) == 1) is (parcel_mb == 64.0)
        parcels = [outbox.read(label) for label in labels]
        assert [parcel.label for parcel in parcels] == list(labels)
        assert all(len(parcel.body) <= wire.parcel_bytes for parcel in parcels)
        came = unpack_tensors(parcels)
        assert same_bits({name[8:]: t for name, t in came.items() if name.startswith("student/")}, task.student)
        assert same_bits({name[8:]: t for name, t in came.items() if name.startswith("teacher/")}, task.teacher)


def test_shared_groups_are_encoded_once_and_organs_once_a_choice_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[set[str]] = []

    def pack_and_tell(bundle: dict[str, Tensor], encoding: Encoding, level: int, limit_bytes: int) -> Iterator[Parcel]:
        packed.append(set(bundle))
        return pack_tensors(bundle, encoding, level, limit_bytes)

    monkeypatch.setattr("server.outbox.pack_tensors", pack_and_tell)
    outbox = Outbox(tmp_path, WireConfig(parcel_mb=0.03))
    models = (_model(1), _model(2))
    for number in range(9):
        organs = (("brain",), ("brain", "liver"), ("liver",))[number % 3]
        outbox.pack(_task(f"site-{number}", organs, Encoding.fp32, models))
    names = [name for bundle in packed for name in bundle]
    assert names.count("student/trunk.w") == names.count("teacher/heads.w") == 1
    assert names.count("student/organs.brain.w") == 2
    assert not any(name.split("/")[1].startswith("organs.") for bundle in packed[:1] for name in bundle)


def test_other_tensors_of_the_same_names_are_other_parcels(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, WireConfig())
    first = outbox.pack(_task("a", ("brain",), Encoding.fp32, (_model(1), _model(2))))
    assert outbox.pack(_task("a", ("brain",), Encoding.fp32, (_model(1), _model(3)))) != first
