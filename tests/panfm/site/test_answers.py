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
from panfm.site.answers import AnswerStore
from tests.client.small_study import metrics, same_bits


@pytest.fixture
def answer() -> SiteUpdate:
    return SiteUpdate(
        run="demo-1",
        round=2,
        site="north",
        task_digest="ab" * 32,
        deltas={"trunk.x": torch.tensor([1.5, -0.0, float("inf")]), "organs.brain.y": torch.zeros(0, 3)},
        num_subjects=3,
        organ_subjects={"brain": 3},
        num_steps=2,
        metrics=metrics(share={"brain": 1.0}),
    )


def _only(folder: Path, name: str) -> Path:
    (path,) = folder.rglob(name)
    return path


def test_answer_is_found_again_bit_for_bit_by_another_process(tmp_path: Path, answer: SiteUpdate) -> None:
    AnswerStore(tmp_path / "answers").commit(answer)
    store = AnswerStore(tmp_path / "answers")
    assert store.digest("demo-1", 2) == answer.task_digest
    read = store.read("demo-1", 2)
    assert same_bits(read.deltas, answer.deltas)
    assert replace(read, deltas={}) == replace(answer, deltas={})


def test_scans_done_without_are_kept_with_the_answer(tmp_path: Path, answer: SiteUpdate) -> None:
    lost = DroppedScan(subject="sub-1", visit="", organ="brain", reason="it has changed")
    AnswerStore(tmp_path).commit(answer, [lost])
    AnswerStore(tmp_path).commit(replace(answer, round=3))
    store = AnswerStore(tmp_path)
    assert [store.dropped("demo-1", number) for number in (2, 3, 4)] == [(lost,), (), ()]
    _only(tmp_path, "dropped.json").write_text("[{}]")
    with pytest.raises(DataError, match="cannot be read; restore"):
        store.dropped("demo-1", 2)


def test_answers_of_the_last_day_are_counted_over_all_runs(tmp_path: Path, answer: SiteUpdate) -> None:
    store, now = AnswerStore(tmp_path / "answers"), datetime.now(UTC)
    assert store.count_since(now - timedelta(days=1)) == 0
    for run, number in (("demo-1", 2), ("demo-1", 3), ("other-2", 1)):
        store.commit(replace(answer, run=run, round=number))
    assert store.count_since(now - timedelta(days=1)) == 3
    old = _only(tmp_path / "answers" / hashlib.sha256(b"other-2").hexdigest()[:16], "answer.json")
    os.utime(old, (now.timestamp() - 90_000,) * 2)
    assert store.count_since(now - timedelta(days=1)) == 2
    assert store.count_since(now + timedelta(days=1)) == 0


def test_other_runs_and_rounds_have_no_answer(tmp_path: Path, answer: SiteUpdate) -> None:
    store = AnswerStore(tmp_path)
    assert store.digest("demo-1", 2) is None
    store.commit(answer)
    assert store.digest("demo-1", 3) is None
    assert store.digest("demo-2", 2) is None
    with pytest.raises(DataError, match="cannot be read; restore"):
        store.read("demo-1", 3)


@pytest.mark.parametrize("run", ["../../up", "/etc/passwd", "", "a\0b", "x" * 500, "ü"])
def test_run_names_a_folder_inside_the_store_whatever_it_is_called(
    tmp_path: Path, answer: SiteUpdate, run: str
) -> None:
    store = AnswerStore(tmp_path / "answers")
    store.commit(replace(answer, run=run))
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

    for number in (1, 2, 3):
        crash_at(number)
        with pytest.raises(KeyboardInterrupt):
            AnswerStore(tmp_path).commit(answer)
        assert AnswerStore(tmp_path).digest("demo-1", 2) is None
    crash_at(4)  # the parent folder: the answer is in place
    with pytest.raises(KeyboardInterrupt):
        AnswerStore(tmp_path).commit(answer)
    assert same_bits(AnswerStore(tmp_path).read("demo-1", 2).deltas, answer.deltas)


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '"words"', '{"task_digest"', "\x00\xff"])
def test_damaged_header_is_a_data_error(tmp_path: Path, answer: SiteUpdate, damage: str) -> None:
    store = AnswerStore(tmp_path)
    store.commit(answer)
    _only(tmp_path, "answer.json").write_text(damage)
    with pytest.raises(DataError, match="restore the site's state"):
        store.digest("demo-1", 2)
    with pytest.raises(DataError, match="restore the site's state"):
        store.read("demo-1", 2)


@pytest.mark.parametrize("keep", [0, 4, 20, -1])
def test_damaged_tensors_are_a_data_error(tmp_path: Path, answer: SiteUpdate, keep: int) -> None:
    store = AnswerStore(tmp_path)
    store.commit(answer)
    path = _only(tmp_path, "deltas.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="restore the site's state"):
        store.read("demo-1", 2)
