"""An organ is listed where it is drawn; what is no label map is said to be none."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.panfm.data.index.site_folders import Index, WriteVolume, reasons

nib: Any = nibabel  # its types are incomplete

SCAN, MAP = ("{subject}/ct",), ("{subject}/seg=totalsegmentator_ct",)


@pytest.mark.parametrize(
    ("labels", "organs"),
    [((1, 5), {"spleen", "liver"}), ((3,), {"kidney"}), ((2, 3, 90), {"kidney", "brain"}), ((4, 200), set())],
)
def test_by_the_numbers_that_occur(
    write_volume: WriteVolume, index: Index, labels: tuple[int, ...], organs: set[str]
) -> None:
    write_volume("site/s1/ct.nii.gz")
    write_volume("site/s1/seg.nii.gz", labels=labels)
    found = index("site", scan=SCAN, label_map=MAP)
    assert {row.organ for row in found.rows} == organs
    assert reasons(found) == ({} if organs else {"s1/ct.nii.gz": "no_organ"})


def test_several_maps_of_one_scan(write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/s1/ct.nii.gz")
    write_volume("site/s1/seg.nii.gz", labels=(5,))
    write_volume("site/s1/fat.nii.gz", labels=(1, 2, 3))
    found = index("site", scan=SCAN, label_map=(*MAP, "{subject}/fat=totalsegmentator_tissue"))
    assert {row.organ: (row.label_map[0].name, row.label_ids) for row in found.rows} == {
        "liver": ("seg.nii.gz", (5,)),
        "adipose": ("fat.nii.gz", (1, 2)),
    }
    torn = index("site", scan=SCAN, label_map=(*MAP, "{subject}/fat=liver"))
    assert reasons(torn) == {"s1/ct.nii.gz": "label_map"}


def test_maps_that_are_none(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    for subject in ("cut", "soft"):
        write_volume(f"site/{subject}/ct.nii.gz")
    cut = write_volume("site/cut/seg.nii.gz", labels=(5,))
    cut.write_bytes(cut.read_bytes()[:-9])
    soft = np.full((6, 6, 6), 0.5, dtype=np.float32)
    nib.Nifti1Image(soft, np.eye(4)).to_filename(tmp_path / "site/soft/seg.nii.gz")
    found = index("site", scan=SCAN, label_map=MAP)
    assert found.rows == ()
    assert reasons(found) == {"cut/ct.nii.gz": "gzip", "soft/ct.nii.gz": "not_labels"}
