"""What is shown is the crop that training reads, thick voxels as often as they count."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from panfm.config import OrganGrid, Spacing
from panfm.data.dataset import SubjectDataset
from panfm.data.show import shown_scans
from panfm.data.store import PreparedStore
from panfm.errors import DataError

WriteStore = Callable[..., PreparedStore]

GRIDS = {organ: OrganGrid(shape=[4, 4, 4], spacing_mm=[4.0, 4.0, 4.0]) for organ in ("brain", "kidney")}


def test_every_scan_of_the_subject_as_training_crops_it(write_store: WriteStore) -> None:
    store = write_store(
        ("a", "v2", "kidney", "test"), ("a", "v1", "kidney", ""), ("a", "", "brain", ""), ("b", "", "brain", "")
    )
    shown = shown_scans(store, "a", GRIDS)
    assert [(scan.organ, scan.visit, scan.split) for scan in shown] == [
        ("brain", "", ""),
        ("kidney", "v1", ""),
        ("kidney", "v2", "test"),
    ]
    batch = SubjectDataset(store, ("brain",), GRIDS).batch([0])
    np.testing.assert_array_equal(shown[0].volume, batch.volumes["brain"][0])
    assert shown[0].spacing_mm == (4.0, 4.0, 4.0)


def test_thick_slices_stand_as_often_as_they_count(write_store: WriteStore) -> None:
    store = write_store(("a", "", "brain", ""))
    thick = replace(store.entries[0], spacing_mm=(1.0, 1.0, 4.5), native=True)
    grids = {"brain": OrganGrid(shape=[8, 8, 16], spacing=Spacing.native)}
    (scan,) = shown_scans(replace(store, entries=(thick,)), "a", grids)
    assert scan.volume.shape == (8, 8, 16)
    assert scan.spacing_mm == (1.0, 1.0, 1.125)
    assert scan.stored_spacing_mm == (1.0, 1.0, 4.5)
    assert (scan.volume[:, :, :4] == scan.volume[:, :, :1]).all()
    np.testing.assert_array_equal(scan.volume[:, :, ::4], store.crop(store.entries[0], (0, 0, 2), (8, 8, 4)))


def test_what_cannot_be_shown(write_store: WriteStore) -> None:
    store = write_store(("s-abc", "", "brain", ""), ("s-xyz", "", "kidney", ""))
    with pytest.raises(DataError, match="no subject 's-abd', but 2 others, such as s-abc"):
        shown_scans(store, "s-abd", GRIDS)
    with pytest.raises(DataError, match="brain, which this recipe does not know"):
        shown_scans(store, "s-abc", {"kidney": GRIDS["kidney"]})
    with pytest.raises(DataError, match="say --recipe as when preparing"):
        shown_scans(store, "s-abc", {"brain": OrganGrid(shape=[16, 16, 16])})
    (store.folder / store.entries[0].file).write_bytes(b"")
    with pytest.raises(DataError, match="has changed"):
        shown_scans(store, "s-abc", GRIDS)
