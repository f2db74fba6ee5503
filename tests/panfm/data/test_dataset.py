"""Batches hold exactly what subjects have, and a subject's draw depends on that subject's generator alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import OrganGrid
from panfm.data.dataset import SubjectDataset, batch_indices
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


@given(
    num_subjects=st.integers(1, 30),
    batch_size=st.integers(1, 40),
    num_steps=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_batches_are_passes_over_everybody(num_subjects: int, batch_size: int, num_steps: int, seed: int) -> None:
    batches = batch_indices(num_subjects, batch_size, num_steps, stream(seed))
    assert len(batches) == num_steps
    assert all(len(batch) == len(set(batch)) == min(batch_size, num_subjects) for batch in batches)
    counts = np.bincount([index for batch in batches for index in batch], minlength=num_subjects)
    # After any number of steps nobody is more than one pass ahead of anybody else.
    assert counts.max() - counts.min() <= 1
    assert batches == batch_indices(num_subjects, batch_size, num_steps, stream(seed))


def test_passes_are_reshuffled() -> None:
    first, second = batch_indices(20, 20, 2, stream(0))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second != list(range(20))
