"""Answers that a site has given: kept through a crash, found by run and round, and named when damaged."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from panfm import durable
from panfm.data.dataset import DroppedScan
from panfm.errors import DataError
from panfm.protocol import SiteUpdate
from panfm.site.answers import AnswerStore, Kept
from panfm.wire.parcels import pack, unpack_tensors
from tests.client.small_study import metrics, same_bits

DELTAS = {"trunk.x": torch.tensor([1.5, -0.0, 2.0]), "organs.brain.y": torch.zeros(0, 3)}
PARCELS = tuple(pack(DELTAS)) + tuple(pack({"trunk.z": torch.ones(4)}))
KEPT = Kept(
    residual={"trunk.x": torch.tensor([0.1, 0.0, -0.2]), "organs.brain.y": torch.ones(2)},
    moments={"exp_avg": {"trunk.x": torch.ones(3), "heads.z": torch.ones(1)}, "step": {"trunk.x": torch.tensor(4.0)}},
)


@pytest.fixture
def answer() -> SiteUpdate:
    return SiteUpdate(
        run="demo-1",
        round=2,
        site="north",
        task_digest="ab" * 32,
        deltas={},
        num_subjects=3,
        organ_subjects={"brain": 3},
        num_steps=2,
        metrics=metrics(share={"brain": 1.0}),
        parcels=tuple(parcel.label for parcel in PARCELS),
    )


def _only(folder: Path, name: str) -> Path:
    (path,) = folder.rglob(name)
    return path


def test_answer_is_found_again_bit_for_bit_by_another_process(tmp_path: Path, answer: SiteUpdate) -> None:
    AnswerStore(tmp_path / "answers").commit(answer, PARCELS)
    store = AnswerStore(tmp_path / "answers")
    assert store.digest("demo-1", 2) == answer.task_digest
    read = store.read("demo-1", 2)
    assert read == answer
    assert store.is_whole("demo-1", 2)
    assert store.parcels(read) == PARCELS
    assert same_bits(unpack_tensors(store.parcels(read)[:1]), DELTAS)


def test_scans_done_without_are_kept_with_the_answer(tmp_path: Path, answer: SiteUpdate) -> None:
    lost = DroppedScan(subject="sub-1", visit="", organ="brain", reason="it has changed")
    AnswerStore(tmp_path).commit(answer, PARCELS, dropped=[lost])
    AnswerStore(tmp_path).commit(replace(answer, round=3), PARCELS)
    store = AnswerStore(tmp_path)
    assert [store.dropped("demo-1", number) for number in (2, 3, 4)] == [(lost,), (), ()]
    _only(tmp_path, "dropped.json").write_text("[{}]")
    with pytest.raises(DataError, match="cannot be read; restore"):
        store.dropped("demo-1", 2)


def test_answers_of_the_last_day_are_counted_over_all_runs(tmp_path: Path, answer: SiteUpdate) -> None:
    store, now = AnswerStore(tmp_path / "answers"), datetime.now(UTC)
    assert store.count_since(now - timedelta(days=1)) == 0
    for run, number in (("demo-1", 2), ("demo-1", 3), ("other-2", 1)):
        store.commit(replace(answer, run=run, round=number), PARCELS)
    assert store.count_since(now - timedelta(days=1)) == 3
    old = _only(tmp_path / "answers" / hashlib.sha256(b"other-2").hexdigest()[:16], "answer.json")
    os.utime(old, (now.timestamp() - 90_000,) * 2)
    assert store.count_since(now - timedelta(days=1)) == 2
    assert store.count_since(now + timedelta(days=1)) == 0


def test_other_runs_and_rounds_have_no_answer(tmp_path: Path, answer: SiteUpdate) -> None:
    store = AnswerStore(tmp_path)
    assert store.digest("demo-1", 2) is None
    store.commit(answer, PARCELS)
    assert store.digest("demo-1", 3) is None
    assert store.digest("demo-2", 2) is None
    with pytest.raises(DataError, match="cannot be read; restore"):
        store.read("demo-1", 3)


@pytest.mark.parametrize("run", ["../../up", "/etc/passwd", "", "a\0b", "x" * 500, "ü"])
def test_run_names_a_folder_inside_the_store_whatever_it_is_called(
    tmp_path: Path, answer: SiteUpdate, run: str
) -> None:
    store = AnswerStore(tmp_path / "answers")
    store.commit(replace(answer, run=run), PARCELS)
    assert store.digest(run, 2) == answer.task_digest
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]
    assert len(_only(tmp_path, "answer.json").relative_to(tmp_path / "answers").parts) == 3


def test_crash_before_the_end_leaves_no_answer(
    tmp_path: Path, answer: SiteUpdate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at each flush in turn: until the rename, nothing was answered; then the whole answer was."""
    flushes = 0

    def crash_at(number: int) -> None:
        nonlocal flushes
        flushes = 0

        def flush(_path: Path) -> None:
            nonlocal flushes
            flushes += 1
            if flushes == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(durable, "flush", flush)

    for number in (1, 2, 3, 4, 5):  # the answer, two parcels, what is kept, and the folder
        crash_at(number)
        with pytest.raises(KeyboardInterrupt):
            AnswerStore(tmp_path).commit(answer, PARCELS, KEPT)
        assert AnswerStore(tmp_path).digest("demo-1", 2) is None
        assert AnswerStore(tmp_path).kept("demo-1", {"trunk": 2}) == Kept()
    crash_at(6)  # the parent folder: the answer is in place, and all that belongs to it
    with pytest.raises(KeyboardInterrupt):
        AnswerStore(tmp_path).commit(answer, PARCELS, KEPT)
    store = AnswerStore(tmp_path)
    assert store.parcels(store.read("demo-1", 2)) == PARCELS
    assert same_bits(store.kept("demo-1", {"trunk": 2, "brain": 2}).residual, KEPT.residual)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '"words"', '{"task_digest"', "\x00\xff"])
def test_damaged_header_is_a_data_error(tmp_path: Path, answer: SiteUpdate, damage: str) -> None:
    store = AnswerStore(tmp_path)
    store.commit(answer, PARCELS)
    _only(tmp_path, "answer.json").write_text(damage)
    with pytest.raises(DataError, match="restore the site's state"):
        store.digest("demo-1", 2)
    with pytest.raises(DataError, match="restore the site's state"):
        store.read("demo-1", 2)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_damaged_tensors_are_a_data_error(tmp_path: Path, answer: SiteUpdate, keep: int) -> None:
    store = AnswerStore(tmp_path)
    store.commit(answer, PARCELS, KEPT)
    for name in ("parcel-001", "kept.safetensors"):
        path = _only(tmp_path, name)
        path.write_bytes(path.read_bytes()[:keep])
    for reading in (
        lambda: store.parcels(answer),
        lambda: store.parcel("demo-1", 2, PARCELS[1].sha256),
        lambda: store.kept("demo-1", {"trunk": 2}),
    ):
        with pytest.raises(DataError, match="restore the site's state"):
            reading()


def test_one_parcel_is_handed_out_by_its_digest(tmp_path: Path, answer: SiteUpdate) -> None:
    store = AnswerStore(tmp_path)
    store.commit(answer, PARCELS)
    assert [store.parcel("demo-1", 2, parcel.sha256) for parcel in PARCELS] == list(PARCELS)
    for run, number, sha256 in (
        ("demo-1", 2, "ab" * 32),
        ("demo-1", 1, PARCELS[0].sha256),
        ("x", 2, PARCELS[0].sha256),
    ):
        assert store.parcel(run, number, sha256) is None


def test_what_was_kept_comes_back_by_group_from_the_round_in_which_the_group_last_counted(
    tmp_path: Path, answer: SiteUpdate
) -> None:
    store = AnswerStore(tmp_path)
    for number in (1, 2, 3):
        kept = Kept(
            residual={name: torch.full((2,), float(number)) for name in ("trunk.x", "heads.x", "organs.brain.x")},
            moments={"exp_avg": {"trunk.x": torch.full((1,), float(number))}},
        )
        store.commit(replace(answer, round=number), PARCELS, kept)
    found = store.kept("demo-1", {"trunk": 3, "brain": 1, "heart": 2, "heads": 9})
    assert {name: tensor.tolist() for name, tensor in found.residual.items()} == {
        "trunk.x": [3.0, 3.0],
        "organs.brain.x": [1.0, 1.0],
    }
    assert {name: tensor.item() for name, tensor in found.moments["exp_avg"].items()} == {"trunk.x": 3.0}
    for run, voted in (("demo-1", {}), ("other", {"trunk": 3}), ("demo-1", {"trunk": -1})):
        nothing = store.kept(run, voted)
        assert not nothing.residual
        assert not any(nothing.moments.values())


def _whole(store: AnswerStore, rounds: range) -> list[int]:
    return [number for number in rounds if store.is_whole("demo-1", number)]


def test_old_rounds_keep_their_digest_and_lose_the_rest(tmp_path: Path, answer: SiteUpdate) -> None:
    store = AnswerStore(tmp_path)
    for number in range(1, 9):
        store.commit(replace(answer, round=number), PARCELS, KEPT, voted=[2] if number > 2 else [])
    assert _whole(store, range(1, 9)) == [2, 6, 7, 8], "the last three, and the one that the coordinator may refer to"
    assert store.digest("demo-1", 1) == answer.task_digest
    assert store.read("demo-1", 1) == replace(answer, round=1)
    assert store.kept("demo-1", {"trunk": 2}).residual
    assert not store.kept("demo-1", {"trunk": 3}).residual
    with pytest.raises(DataError):
        store.parcels(replace(answer, round=1))
    store.commit(replace(answer, round=9), PARCELS, KEPT, voted=[8])
    assert _whole(store, range(1, 10)) == [7, 8, 9]


def test_another_run_is_left_alone_until_it_is_long_over(tmp_path: Path, answer: SiteUpdate) -> None:
    store = AnswerStore(tmp_path)
    for number in (1, 2):
        store.commit(replace(answer, round=number), PARCELS, KEPT)
    store.commit(replace(answer, run="next"), PARCELS)
    assert _whole(store, range(1, 3)) == [1, 2]
    month_ago = datetime.now(UTC).timestamp() - 31 * 86_400
    for path in (tmp_path / hashlib.sha256(b"demo-1").hexdigest()[:16]).glob("*/answer.json"):
        os.utime(path, (month_ago,) * 2)
    store.commit(replace(answer, run="next", round=3), PARCELS)
    assert _whole(store, range(1, 3)) == []
    assert store.digest("demo-1", 2) == answer.task_digest
