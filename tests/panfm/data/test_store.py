"""A crop is the file's own voxels; a file that changed is named and never used."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from panfm.data import store as store_module
from panfm.data.store import PreparedStore, StoreEntry, write_table
from panfm.errors import DataError, ScanError

WriteStore = Callable[..., PreparedStore]


def test_a_crop_is_a_float32_copy_of_the_files_voxels(write_store: WriteStore) -> None:
    store = write_store(("s1", "", "brain", "train"))
    whole = np.load(store.folder / store.entries[0].file)
    crop = store.crop(store.entries[0], (1, 2, 3), (4, 5, 2))
    np.testing.assert_array_equal(crop, whole[1:5, 2:7, 3:5].astype(np.float32))
    assert crop.dtype == np.float32
    crop[:] = 0
    assert store.crop(store.entries[0], (1, 2, 3), (4, 5, 2)).any()


def test_entries_are_sorted_and_come_back_as_written(write_store: WriteStore) -> None:
    store = write_store(("s2", "", "brain", "a"), ("s1", "v2", "brain", "b"), ("s1", "v1", "heart", ""))
    assert [(e.subject, e.visit, e.organ, e.split) for e in store.entries] == [
        ("s1", "v1", "heart", ""),
        ("s1", "v2", "brain", "b"),
        ("s2", "", "brain", "a"),
    ]
    assert store.entries[0].spacing_mm == (4.0, 4.0, 4.0)


def test_a_changed_file_is_named(write_store: WriteStore) -> None:
    store = write_store(("s1", "v1", "brain", "train"), ("s2", "v1", "brain", "train"))
    path = store.folder / store.entries[0].file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"^s1 / v1 / brain: .* has changed since it was prepared"):
        store.crop(store.entries[0], (0, 0, 0), (4, 4, 4))
    assert store.crop(store.entries[1], (0, 0, 0), (4, 4, 4)).shape == (4, 4, 4)
    path.unlink()
    with pytest.raises(ScanError, match=r"s1 / v1 / brain: .* is missing"):
        store.crop(store.entries[0], (0, 0, 0), (4, 4, 4))


@pytest.mark.parametrize(("start", "shape"), [((-1, 0, 0), (4, 4, 4)), ((0, 0, 5), (4, 4, 4)), ((0, 0, 0), (9, 4, 4))])
def test_a_crop_outside_is_refused(
    write_store: WriteStore, start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    store = write_store(("s1", "", "brain", "train"))
    with pytest.raises(DataError, match="prepare the store again"):
        store.crop(store.entries[0], start, shape)


def test_no_store_and_a_damaged_one(tmp_path: Path, write_store: WriteStore) -> None:
    with pytest.raises(DataError, match=r"table\.csv is missing"):
        PreparedStore.open(tmp_path)
    store = write_store(("s1", "", "brain", "train"))
    table = store.folder / "table.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("8 8 8", "8 8"), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        PreparedStore.open(store.folder)


def test_a_file_replaced_after_it_was_verified_is_never_shown(
    write_store: WriteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its map is open, the old file is read, whatever its name points to; once the map is closed, the new one is found."""
    monkeypatch.setattr(store_module, "_MAX_OPEN", 1)
    store = write_store(("s1", "", "brain", ""), ("s2", "", "brain", ""))
    first, second = store.entries
    before = store.crop(first, (0, 0, 0), (8, 8, 8))
    np.save(store.folder / "new.npy", np.zeros((8, 8, 8), dtype=np.float16))
    (store.folder / "new.npy").replace(store.folder / first.file)
    np.testing.assert_array_equal(store.crop(first, (0, 0, 0), (8, 8, 8)), before)
    store.crop(second, (0, 0, 0), (8, 8, 8))  # the only map that may be open now
    with pytest.raises(ScanError, match=r"s1 / brain: brain/s1@\.npy has changed"):
        store.crop(first, (0, 0, 0), (8, 8, 8))


def test_a_file_is_hashed_once_however_often_its_map_is_opened(
    write_store: WriteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_MAX_OPEN", 1)
    store = write_store(("s1", "", "brain", ""), ("s2", "", "brain", ""))
    for entry in store.entries:
        store.crop(entry, (0, 0, 0), (1, 1, 1))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    for entry in (*store.entries, *store.entries):
        store.crop(entry, (0, 0, 0), (1, 1, 1))


def test_what_is_no_volume_is_named_even_if_its_digest_fits(write_store: WriteStore) -> None:
    store = write_store(("s1", "", "brain", ""))
    (store.folder / store.entries[0].file).write_bytes(b"no volume")
    entry = replace(store.entries[0], digest=hashlib.sha256(b"no volume").hexdigest())
    with pytest.raises(ScanError, match=r"s1 / brain: cannot read .*prepare the store again"):
        store.crop(entry, (0, 0, 0), (1, 1, 1))


def test_a_table_of_many_scans_takes_little_memory(tmp_path: Path) -> None:
    """7,000 scans within a tenth of what 70,000 may take, with digests and names as different as real ones."""
    entries = [
        StoreEntry(
            subject=f"sub-{number // 7:05d}",
            visit="ses-1",
            organ=f"organ{number % 7}",
            file=f"organ{number % 7}/sub-{number // 7:05d}@ses-1.npy",
            shape=(36, 36, 36),
            spacing_mm=(5.0, 6.0, 5.0),
            source_digest=hashlib.sha256(f"source {number}".encode()).hexdigest(),
            digest=hashlib.sha256(f"{number}".encode()).hexdigest(),
            split="pretrain",
        )
        for number in range(7000)
    ]
    write_table(tmp_path, entries)
    tracemalloc.start()
    try:
        store = PreparedStore.open(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.entries == tuple(sorted(entries, key=lambda entry: (entry.subject, entry.visit, entry.organ)))
    assert peak < 10e6
