"""The pass from scans to the store: right voxels, redone only where something changed, whole after any interruption."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.config import OrganGrid, PrepareConfig
from panfm.data import prepare
from panfm.data.intensity import BACKGROUND
from panfm.data.manifest import ScanRow, read_scan_table, write_scan_table
from panfm.data.prepare import prepare_store
from panfm.errors import DataError

WriteScan = Callable[..., Path]

GRIDS = {
    "brain": OrganGrid(shape=[8, 8, 8], spacing_mm=[4.0, 4.0, 4.0]),
    "kidney": OrganGrid(shape=[8, 4, 8], spacing_mm=[3.0, 2.0, 3.0]),
}
CONFIG = PrepareConfig(margin_voxels=1, clip_percentiles=[0, 100])


def _ball(
    seed: int, centre: tuple[float, float, float] = (10, 12, 9)
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    distance = np.linalg.norm(np.indices((22, 24, 20)) - np.reshape(centre, (3, 1, 1, 1)), axis=0)
    noise = np.random.default_rng(seed).integers(0, 100, (22, 24, 20))
    return np.where(distance < 6, 500 + noise, 0).astype(np.int16)


@pytest.fixture
def site(tmp_path: Path, write_scan: WriteScan) -> Path:
    """Two subjects: one brain each, and for the first a kidney cut by label ids."""
    folder = tmp_path / "site"
    label_map = np.zeros((22, 24, 20), dtype=np.uint8)
    label_map[4:8, 4:8, 4:8], label_map[12:16, 12:16, 12:16], label_map[:2] = 2, 3, 9
    rows = [
        ScanRow(subject="s1", organ="brain", path=write_scan(folder / "s1.nii.gz", _ball(1)), split="train"),
        ScanRow(subject="s2", organ="brain", path=write_scan(folder / "s2.nii.gz", _ball(2)), split="test"),
        ScanRow(
            subject="s1",
            visit="v1",
            organ="kidney",
            path=folder / "s1.nii.gz",
            label_map=(write_scan(folder / "map.nii.gz", label_map),),
            label_ids=(2, 3),
        ),
    ]
    write_scan_table(folder / "scans.csv", rows)
    return folder


def _files(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def _table(store: Path, name: str) -> list[dict[str, str]]:
    with (store / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_what_is_stored(site: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    store = prepare_store(
        site, tmp_path / "store", GRIDS, CONFIG, on_scan=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert [(e.subject, e.visit, e.organ, e.file, e.shape) for e in store.entries] == [
        ("s1", "", "brain", "brain/s1.npy", (10, 10, 10)),
        ("s1", "v1", "kidney", "kidney/s1@v1.npy", (10, 6, 10)),
        ("s2", "", "brain", "brain/s2.npy", (10, 10, 10)),
    ]
    assert np.load(store.folder / "brain/s1.npy").dtype == np.float16
    statement = json.loads((store.folder / "statement.json").read_text(encoding="utf-8"))
    assert statement["settings"]["prepare"] == {"clip_percentiles": [0, 100], "margin_voxels": 1}
    assert _table(store.folder, "refused.csv") == []


def test_the_organ_stands_in_the_middle_over_background(site: Path, tmp_path: Path) -> None:
    store = prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    brain = store.crop(store.entries[0], (0, 0, 0), (10, 10, 10))
    tissue = np.argwhere(brain > -1.5)
    np.testing.assert_allclose(tissue.mean(axis=0), 4.5, atol=0.3)
    assert brain[0, 0, 0] == BACKGROUND
    assert brain.min() == BACKGROUND


def test_a_labelled_organ_is_cut_where_its_labels_lie(tmp_path: Path, write_scan: WriteScan) -> None:
    """Two bright kidneys in a grey body in air: both labels centre the grid between them, one label on its kidney."""
    body = np.zeros((60, 24, 24), dtype=np.int16)
    body[2:58, 2:22, 2:22] = 100
    label_map = np.zeros(body.shape, dtype=np.uint8)
    label_map[16:20, 10:14, 10:14], label_map[34:38, 10:14, 10:14] = 2, 3
    body[label_map > 0] = 300 + np.arange(128) % 7
    path, map_path = write_scan(tmp_path / "ct.nii", body), write_scan(tmp_path / "map.nii", label_map)
    grid = OrganGrid(shape=[24, 8, 8], spacing_mm=[2.0, 2.0, 2.0])

    def bright_columns(*label_ids: int) -> list[int]:
        row = ScanRow(subject="s", organ="kidney", path=path, label_map=(map_path,), label_ids=label_ids)
        prepared = prepare.prepare_scan(row, grid, PrepareConfig(margin_voxels=0, clip_percentiles=[0, 100]))
        columns = prepared[:, 2:6, 2:6].astype(np.float32).mean(axis=(1, 2))
        return [int(x) for x in np.flatnonzero(columns > (columns.min() + columns.max()) / 2)]

    assert bright_columns(2, 3) == bright_columns() == [1, 2, 3, 4, 19, 20, 21, 22]
    assert bright_columns(3) == [10, 11, 12, 13]


def test_a_second_pass_changes_and_reads_nothing_it_need_not(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    before = _files(tmp_path / "store")
    monkeypatch.setattr(prepare, "prepare_scan", lambda *_: pytest.fail("prepared again"))
    prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    assert _files(tmp_path / "store") == before


def _prepared_again(site: Path, store: Path, config: PrepareConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    redone = []
    original = prepare.prepare_scan

    def watched(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> object:
        redone.append(f"{row.subject} {row.organ}")
        return original(row, grid, config)

    monkeypatch.setattr(prepare, "prepare_scan", watched)
    prepare_store(site, store, GRIDS, config)
    return sorted(redone)


def test_only_what_changed_is_redone(
    site: Path, tmp_path: Path, write_scan: WriteScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    prepare_store(site, store, GRIDS, CONFIG)
    write_scan(site / "s2.nii.gz", _ball(7))
    assert _prepared_again(site, store, CONFIG, monkeypatch) == ["s2 brain"]
    label_map = np.zeros((22, 24, 20), dtype=np.uint8)
    label_map[9:13, 9:13, 5:9] = 3
    write_scan(site / "map.nii.gz", label_map)
    assert _prepared_again(site, store, CONFIG, monkeypatch)[:1] == ["s1 kidney"]
    other = PrepareConfig(margin_voxels=1, clip_percentiles=[1, 99])
    assert len(_prepared_again(site, store, other, monkeypatch)) >= 3


def test_a_damaged_stored_file_is_redone(site: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare_store(site, store, GRIDS, CONFIG)
    before = _files(store)
    (store / "brain/s1.npy").write_bytes(before["brain/s1.npy"][:-7])
    prepare_store(site, store, GRIDS, CONFIG)
    assert _files(store) == before


@pytest.mark.parametrize("stop_after", [1, 2])
def test_an_interrupted_pass_goes_on_to_the_same_bytes(
    site: Path, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, _: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    prepare_store(site, tmp_path / "whole", GRIDS, CONFIG)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(site, tmp_path / "cut", GRIDS, CONFIG, on_scan=stop)
    assert not (tmp_path / "cut/table.csv").exists()
    (tmp_path / "cut/brain/s2.npy.tmp").write_bytes(b"half a file")
    assert len(_prepared_again(site, tmp_path / "cut", CONFIG, monkeypatch)) == 3 - stop_after
    assert _files(tmp_path / "cut") == _files(tmp_path / "whole")


def test_two_workers_write_what_one_writes(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_BYTES_PER_PROCESS", 1)
    prepare_store(site, tmp_path / "one", GRIDS, CONFIG)
    prepare_store(site, tmp_path / "two", GRIDS, CONFIG, workers=2)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_broken_scans_are_left_out_with_their_reason(site: Path, tmp_path: Path) -> None:
    (site / "s2.nii.gz").write_bytes((site / "s2.nii.gz").read_bytes()[:-20])
    store = prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    assert {entry.subject for entry in store.entries} == {"s1"}
    (refused,) = _table(store.folder, "refused.csv")
    assert (refused["subject"], refused["organ"]) == ("s2", "brain")
    assert refused["reason"].startswith("s2.nii.gz: the gzip stream is damaged")


def test_an_organ_that_is_not_in_the_label_map_is_left_out(site: Path, tmp_path: Path, write_scan: WriteScan) -> None:
    write_scan(site / "map.nii.gz", np.zeros((22, 24, 20), dtype=np.uint8))
    store = prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    assert "nothing of the kidney found" in _table(store.folder, "refused.csv")[0]["reason"]


def test_nothing_left_is_an_error(site: Path, tmp_path: Path) -> None:
    for name in ("s1.nii.gz", "s2.nii.gz"):
        (site / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 3 scans can be used: s1\.nii\.gz"):
        prepare_store(site, tmp_path / "store", GRIDS, CONFIG)


def test_a_subject_who_left_the_table_leaves_the_store(site: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    prepare_store(site, store, GRIDS, CONFIG)
    (store / "brain/notes.txt").write_text("not ours", encoding="utf-8")
    write_scan_table(site / "scans.csv", [ScanRow(subject="s1", organ="brain", path=site / "s1.nii.gz")])
    prepare_store(site, store, GRIDS, CONFIG)
    assert sorted(name for name in _files(store) if "/" in name) == ["brain/notes.txt", "brain/s1.json", "brain/s1.npy"]


def test_what_did_not_change_is_not_touched(site: Path, tmp_path: Path, write_scan: WriteScan) -> None:
    """One scan is replaced and one is new: of the others neither inode nor time of change moves, though all is read."""
    store = tmp_path / "store"
    prepare_store(site, store, GRIDS, CONFIG)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.glob("*/*")}
    write_scan(site / "s2.nii.gz", _ball(7))
    new = ScanRow(subject="s3", organ="brain", path=write_scan(site / "s3.nii.gz", _ball(3)))
    write_scan_table(site / "scans.csv", [*read_scan_table(site / "scans.csv", tuple(GRIDS)), new])
    prepare_store(site, store, GRIDS, CONFIG, workers=2)
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.glob("*/*")}
    kept = {name for name, state in after.items() if before.get(name) == state}
    assert kept == {"s1.npy", "s1.json", "s1@v1.npy", "s1@v1.json"}
    assert after.keys() - before.keys() == {"s3.npy", "s3.json"}


def test_a_volume_without_a_record_of_somebody_who_left_goes_too(site: Path, tmp_path: Path) -> None:
    """A pass that was killed between the two files of a scan, whose subject then withdrew."""
    store = tmp_path / "store"
    prepare_store(site, store, GRIDS, CONFIG)
    (store / "brain/s2.json").unlink()
    write_scan_table(site / "scans.csv", [ScanRow(subject="s1", organ="brain", path=site / "s1.nii.gz")])
    prepare_store(site, store, GRIDS, CONFIG)
    assert sorted(name for name in _files(store) if "/" in name) == ["brain/s1.json", "brain/s1.npy"]


def test_all_is_on_disk_before_the_table_names_it(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(os, "sync", lambda: seen.extend(sorted(_files(tmp_path / "store"))))
    prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    assert seen == [f"{place}.{kind}" for place in ("brain/s1", "brain/s2", "kidney/s1@v1") for kind in ("json", "npy")]


def test_one_pass_at_a_time(site: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    descriptor = os.open(tmp_path / "store", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is preparing .*store; wait until it is done"):
            prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
    finally:
        os.close(descriptor)
    prepare_store(site, tmp_path / "store", GRIDS, CONFIG)


def test_a_store_that_cannot_be_written_is_named(site: Path, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file stands here", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot write the store .*store"):
        prepare_store(site, tmp_path / "store", GRIDS, CONFIG)
