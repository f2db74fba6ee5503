"""A crop is the file's own voxels; a file that changed is named and never used."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.data.store import PreparedStore
from panfm.errors import DataError

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
    with pytest.raises(DataError, match="s1 / v1 / brain: cannot read"):
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
