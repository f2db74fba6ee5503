"""An organ is found where it was drawn, whatever the grids; maps that do not fit their scan are refused with a code."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from panfm.data.locate import locate
from panfm.data.manifest import ScanRow
from panfm.data.reading import read_scan
from panfm.errors import ScanError

WriteScan = Callable[..., Path]

SHAPE = (20, 16, 12)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
VOXELS = np.random.default_rng(0).integers(50, 100, SHAPE).astype(np.int16)
DRAWN = np.zeros(SHAPE, dtype=np.uint8)
DRAWN[4:9, 3:8, 2:7] = 5


@pytest.fixture
def row(tmp_path: Path, write_scan: WriteScan) -> ScanRow:
    path = write_scan(tmp_path / "scan.nii.gz", VOXELS, AFFINE)
    drawn = write_scan(tmp_path / "map.nii.gz", DRAWN, AFFINE)
    return ScanRow(subject="s1", organ="liver", path=path, label_map=(drawn,), label_ids=(5,))


def _code(row: ScanRow) -> str:
    with pytest.raises(ScanError) as raised:
        locate(row, read_scan(row.path))
    return raised.value.code


def test_a_drawn_organ_is_found(row: ScanRow) -> None:
    located = locate(row, read_scan(row.path))
    np.testing.assert_array_equal(located.organ, DRAWN == 5)
    assert located.repairs == ()


def test_a_map_stored_from_the_other_side_is_the_same(row: ScanRow, write_scan: WriteScan) -> None:
    flipped = AFFINE.copy()
    flipped[0, 0], flipped[0, 3] = -2, 2 * (SHAPE[0] - 1)
    write_scan(row.label_map[0], DRAWN[::-1].copy(), flipped)
    located = locate(row, read_scan(row.path))
    np.testing.assert_array_equal(located.organ, DRAWN == 5)
    assert [finding.code for finding in located.repairs] == ["label_map_resampled"]


def test_a_map_that_lost_its_orientation_is_refused(row: ScanRow, write_scan: WriteScan) -> None:
    write_scan(row.label_map[0], DRAWN, np.diag([-2.0, -2.0, 2.0, 1.0]))
    assert _code(row) == "label_map_mirrored"


def test_a_map_of_another_scan_is_refused(row: ScanRow, write_scan: WriteScan) -> None:
    far = AFFINE.copy()
    far[2, 3] = 500
    write_scan(row.label_map[0], DRAWN, far)
    assert _code(row) == "label_map_outside"


def test_an_organ_beyond_the_field_of_view(row: ScanRow, write_scan: WriteScan) -> None:
    tall = np.zeros((20, 16, 40), dtype=np.uint8)
    tall[4:9, 3:8, 6:18] = 5
    write_scan(row.label_map[0], tall, AFFINE)
    located = locate(row, read_scan(row.path))
    assert int(located.organ.sum()) == 5 * 5 * 6
    assert [f.code for f in located.repairs] == ["label_map_resampled", "organ_cut"]
    assert "50 %" in located.repairs[1].message

    tall[:] = 0
    tall[4:9, 3:8, 20:30] = 5
    write_scan(row.label_map[0], tall, AFFINE)
    assert _code(row) == "organ_outside"


def test_empty_and_single_voxels(row: ScanRow, write_scan: WriteScan) -> None:
    assert _code(replace(row, label_ids=(7,))) == "organ_empty"
    one = np.zeros(SHAPE, dtype=np.uint8)
    one[3, 3, 3] = 5
    write_scan(row.label_map[0], one, AFFINE)
    assert _code(row) == "organ_one_voxel"


def test_one_of_two_maps_may_be_empty(row: ScanRow, tmp_path: Path, write_scan: WriteScan) -> None:
    empty = write_scan(tmp_path / "removed.nii.gz", np.zeros(SHAPE, dtype=np.uint8), AFFINE)
    located = locate(replace(row, label_map=(*row.label_map, empty)), read_scan(row.path))
    assert int(located.organ.sum()) == int((DRAWN == 5).sum())


def test_a_box_outside_and_an_organ_without_contrast(row: ScanRow) -> None:
    bare = replace(row, label_map=(), label_ids=())
    assert _code(replace(bare, box=((0, 21), (0, 4), (0, 4)))) == "box_outside"
    assert _code(replace(bare, window=(1000.0, 2000.0))) == "organ_empty"
    assert _code(replace(bare, box=((0, 5), (0, 5), (0, 5)), window=(1000.0, 2000.0))) == "no_contrast"


@pytest.mark.parametrize("mirrored", [False, True])
def test_left_and_right_of_a_whole_body_map(row: ScanRow, write_scan: WriteScan, mirrored: bool) -> None:
    body = np.zeros(SHAPE, dtype=np.uint8)  # RAS+: the right side has the higher indices
    for label, x in ((3, 3), (1, 4), (2, 16), (5, 15)):
        body[x - 1 : x + 2, 4:8, 2:6] = label
    write_scan(row.label_map[0], body[::-1].copy() if mirrored else body, AFFINE)
    if mirrored:
        assert _code(row) == "left_right"
    else:
        assert locate(row, read_scan(row.path)).organ.any()
