"""Batches hold exactly what subjects have, and a subject's draw depends on that subject's generator alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch

from panfm.config import OrganGrid
from panfm.data.dataset import DroppedScan, SubjectDataset
from panfm.data.store import PreparedStore
from panfm.errors import DataError
from panfm.randomness import stream

WriteStore = Callable[..., PreparedStore]

ORGANS = ("heart", "brain", "liver")
GRIDS = {organ: OrganGrid(shape=[4, 4, 4], spacing_mm=[4.0, 4.0, 4.0]) for organ in ORGANS}
SCANS = (
    ("c", "v1", "brain", "train"),
    ("a", "v1", "brain", "train"),
    ("a", "v2", "brain", "train"),
    ("a", "v1", "heart", "train"),
    ("a", "v2", "heart", "train"),
    ("b", "", "heart", "test"),
    ("d", "", "kidney", "train"),
)


def _volume(store: PreparedStore, file: str) -> torch.Tensor:
    return torch.from_numpy(np.load(store.folder / file).astype(np.float32))


def test_subjects_counts_and_splits(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    everyone = SubjectDataset(store, ORGANS, GRIDS)
    assert everyone.subjects == ("a", "b", "c")
    assert everyone.num_subjects == {"heart": 2, "brain": 2}
    train = SubjectDataset(store, ORGANS, GRIDS, "train")
    assert (train.subjects, len(train), train.num_subjects) == (("a", "c"), 2, {"heart": 1, "brain": 2})
    with pytest.raises(DataError, match=r"nobody in split 'probe' has any of heart, brain, liver"):
        SubjectDataset(store, ORGANS, GRIDS, "probe")


def test_a_batch_holds_what_subjects_have(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    batch = SubjectDataset(store, ORGANS, GRIDS).batch([2, 0, 1])
    assert (batch.subjects, batch.organs) == (("c", "a", "b"), ORGANS)
    assert {organ: rows.tolist() for organ, rows in batch.rows.items()} == {"heart": [1, 2], "brain": [0, 1]}
    assert batch.presence.tolist() == [[False, True, False], [True, True, False], [True, False, False]]
    assert (batch.presence.dtype, batch.rows["heart"].dtype) == (torch.bool, torch.int64)
    centre = slice(2, 6)
    assert torch.equal(batch.volumes["brain"][0], _volume(store, "brain/c@v1.npy")[centre, centre, centre])
    assert torch.equal(batch.volumes["brain"][1], _volume(store, "brain/a@v1.npy")[centre, centre, centre])
    assert batch.volumes["heart"].shape == (2, 4, 4, 4)


def test_draws_are_crops_within_the_shift_and_reach_all_of_it(write_store: WriteStore) -> None:
    """Every draw equals one of the 2 visits x 27 shifts, cut out by hand; 600 draws find each of the 54."""
    store = write_store(*SCANS)
    dataset = SubjectDataset(store, ORGANS, GRIDS)
    crops = {
        _volume(store, f"brain/a@{visit}.npy")[x : x + 4, y : y + 4, z : z + 4].numpy().tobytes(): (visit, x, y, z)
        for visit in ("v1", "v2")
        for x in (1, 2, 3)
        for y in (1, 2, 3)
        for z in (1, 2, 3)
    }
    seen = {
        crops[dataset.batch([0], [stream(0, draw)], shift_voxels=1).volumes["brain"][0].numpy().tobytes()]
        for draw in range(600)
    }
    assert seen == set(crops.values())


def test_organs_imaged_together_come_together(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    dataset = SubjectDataset(store, ORGANS, GRIDS)
    visits = {
        organ: [_volume(store, f"{organ}/a@{v}.npy")[2:6, 2:6, 2:6] for v in ("v1", "v2")] for organ in ORGANS[:2]
    }
    picked = set()
    for draw in range(20):
        batch = dataset.batch([0], [stream(1, draw)])
        which = {
            organ: [torch.equal(batch.volumes[organ][0], v) for v in visits[organ]].index(True) for organ in visits
        }
        assert which["brain"] == which["heart"]
        picked.add(which["brain"])
    assert picked == {0, 1}


def test_a_subjects_view_does_not_depend_on_the_others(write_store: WriteStore) -> None:
    dataset = SubjectDataset(write_store(*SCANS), ORGANS, GRIDS)
    alone = dataset.batch([0], [stream(0, "a")], shift_voxels=2)
    together = dataset.batch([1, 2, 0], [stream(0, "b"), stream(0, "c"), stream(0, "a")], shift_voxels=2)
    for organ, row in (("heart", 1), ("brain", 1)):
        assert torch.equal(alone.volumes[organ][0], together.volumes[organ][row])


def test_a_store_for_other_grids_is_refused(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    for other in (OrganGrid(shape=[4, 4, 4], spacing_mm=[4.0, 4.0, 5.0]), OrganGrid(shape=[4, 12, 4])):
        with pytest.raises(DataError, match="prepare the store again"):
            SubjectDataset(store, ("brain",), {"brain": other})
    dataset = SubjectDataset(store, ("brain",), GRIDS)
    subjects = [0] * 5  # a single draw in -50..50 leaves the margin of 2 but for a chance of 1e-4
    with pytest.raises(DataError, match="prepare the store again"):
        dataset.batch(subjects, [stream(0, draw) for draw in range(5)], shift_voxels=50)


def _spoil(store: PreparedStore, *files: str) -> None:
    for file in files:
        path = store.folder / file
        path.write_bytes(path.read_bytes()[:-1] + b"\x7f")


def test_a_changed_scan_is_dropped_by_name_and_its_subject_keeps_the_rest(write_store: WriteStore) -> None:
    """`a` loses one of two brains and keeps both hearts; `c` had one brain and nothing else, and leaves."""
    store = write_store(*SCANS)
    _spoil(store, "brain/a@v1.npy")
    (store.folder / "brain/c@v1.npy").unlink()
    dataset = SubjectDataset(store, ORGANS, GRIDS)
    for draw in range(8):  # both visits of `a` are asked for
        batch = dataset.batch([2, 0, 1], [stream(draw, name) for name in "cab"], shift_voxels=1)
        assert batch.subjects == ("a", "b")
        assert {organ: rows.tolist() for organ, rows in batch.rows.items()} == {"heart": [0, 1], "brain": [0]}
    assert [(scan.subject, scan.visit, scan.organ) for scan in dataset.dropped] == [
        ("a", "v1", "brain"),
        ("c", "v1", "brain"),
    ]
    assert "has changed since it was prepared" in dataset.dropped[0].reason
    assert "is missing" in dataset.dropped[1].reason
    assert dataset.num_subjects == {"heart": 2, "brain": 1}
    assert [sorted(organs) for organs in dataset.organs_of] == [["brain", "heart"], ["heart"], []]
    assert dataset.subjects == ("a", "b", "c"), "indices still mean whom they meant"


def test_what_is_drawn_does_not_depend_on_when_a_scan_was_found_changed(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    _spoil(store, "heart/a@v1.npy", "heart/a@v2.npy")  # the organ before the brain in the order of draws
    fresh, knowing = SubjectDataset(store, ORGANS, GRIDS), SubjectDataset(store, ORGANS, GRIDS)
    knowing.batch([0], [stream(1)])
    assert len(knowing.dropped) == 2
    first, second = (dataset.batch([0], [stream(2)], shift_voxels=2) for dataset in (fresh, knowing))
    assert torch.equal(first.volumes["brain"], second.volumes["brain"])
    whole = SubjectDataset(write_store(*SCANS), ORGANS, GRIDS).batch([0], [stream(2)], shift_voxels=2)
    assert torch.equal(first.volumes["brain"], whole.volumes["brain"])


def test_a_batch_for_a_table_of_results_loses_nobody_unseen(write_store: WriteStore) -> None:
    store = write_store(*SCANS)
    _spoil(store, "brain/a@v1.npy")
    dataset = SubjectDataset(store, ORGANS, GRIDS)
    with pytest.raises(DataError, match=r"a / v1 / brain: .* has changed"):
        dataset.batch([0])
    assert dataset.dropped == ()


def test_a_dropped_scan_says_all_that_the_site_needs() -> None:
    assert [f.name for f in fields(DroppedScan)] == ["subject", "visit", "organ", "reason"]


def test_a_batch_takes_little_more_memory_than_it_returns(write_store: WriteStore) -> None:
    store = write_store(*[(f"s{number:02d}", "v1", organ, "") for number in range(16) for organ in ORGANS])
    dataset = SubjectDataset(store, ORGANS, {organ: OrganGrid(shape=[8, 8, 8]) for organ in ORGANS})
    dataset.batch(range(16))  # maps are opened
    tracemalloc.start()
    try:
        batch = dataset.batch(range(16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    returned = sum(volumes.nbytes for volumes in batch.volumes.values())
    assert returned == 3 * 16 * 8**3 * 4
    assert peak < 3 * returned
