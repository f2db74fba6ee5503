"""A site's verdicts agree with what preparing does, and no scan can stop the check."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.config import OrganGrid, PrepareConfig
from panfm.data.check import Verdict, check_file, check_table, write_check_table
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.overview import outliers
from panfm.data.prepare import prepare_store
from panfm.errors import DataError

WriteScan = Callable[..., Path]
ORGANS = ("brain", "liver")
SHAPE = (12, 14, 10)


@pytest.fixture
def site(tmp_path: Path, write_scan: WriteScan) -> Path:
    """s1 sound; s2 cut short; s3 with trailing bytes; s4 an empty label map; s5 the same file as s1."""
    random = np.random.default_rng(0)
    scans = [random.integers(10, 200, SHAPE).astype(np.int16) for _ in range(4)]
    paths = [write_scan(tmp_path / f"s{i}.nii", scan) for i, scan in enumerate(scans, start=1)]
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    paths[2].write_bytes(paths[2].read_bytes() + bytes(9))
    empty = write_scan(tmp_path / "empty.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    rows = [
        ScanRow(subject="s1", organ="brain", path=paths[0]),
        ScanRow(subject="s2", organ="brain", path=paths[1]),
        ScanRow(subject="s3", organ="liver", path=paths[2], box=((2, 8), (2, 8), (2, 8))),
        ScanRow(subject="s4", organ="liver", path=paths[3], label_map=(empty,)),
        ScanRow(subject="s5", organ="brain", path=paths[0]),
    ]
    write_scan_table(tmp_path / "scans.csv", rows)
    return tmp_path


EXPECTED = [
    ("s1", "repaired", ["duplicate"]),
    ("s2", "refused", ["too_short"]),
    ("s3", "repaired", ["trailing_bytes"]),
    ("s4", "refused", ["organ_empty"]),
    ("s5", "repaired", ["duplicate"]),
]


@pytest.mark.parametrize("workers", [1, 2])
def test_verdicts_in_the_order_of_the_table(site: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    report = check_table(site, ORGANS, workers=workers, on_scan=lambda *progress: seen.append(progress))
    assert [(s.subject, s.verdict.value, [f.code for f in s.findings]) for s in report.scans] == EXPECTED
    assert [scan.subject for scan in report.refused] == ["s2", "s4"]
    assert seen == [(done, 5) for done in range(1, 6)]


def test_what_is_refused_is_what_preparing_refuses(site: Path, tmp_path: Path) -> None:
    grids = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[3.0, 3.0, 3.0]) for organ in ORGANS}
    prepare_store(site, tmp_path / "store", grids, PrepareConfig(margin_voxels=1))
    with (tmp_path / "store" / "refused.csv").open(newline="", encoding="utf-8") as stream:
        prepared = {(line["subject"], line["code"]) for line in csv.DictReader(stream)}
    report = check_table(site, ORGANS)
    assert prepared == {(scan.subject, scan.findings[0].code) for scan in report.refused}


def test_facts(site: Path) -> None:
    scans = check_table(site, ORGANS).scans
    facts = scans[2].facts
    assert facts is not None
    assert scans[1].facts is None
    assert (facts.shape, facts.spacing_mm, facts.axes) == (SHAPE, (2.0, 2.0, 2.0), "RAS")
    assert facts.organ_ml == pytest.approx(6**3 * 8 / 1000)
    assert [one.plane for one in scans[2].slices] == ["axial", "coronal"]
    assert scans[2].slices[0].organ.any()
    assert not scans[0].slices[0].organ.any()


def test_table_for_programs(site: Path, tmp_path: Path) -> None:
    report = check_table(site, ORGANS)
    write_check_table(tmp_path / "check.csv", report, outliers(report))
    with (tmp_path / "check.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["subject"], line["verdict"], line["codes"].split()) for line in lines] == EXPECTED
    assert lines[0]["shape"] == "12 14 10"
    assert lines[1]["shape"] == ""
    assert str(tmp_path) not in (tmp_path / "check.csv").read_text(encoding="utf-8")


def test_single_files(tmp_path: Path, write_scan: WriteScan) -> None:
    assert check_file(tmp_path / "none.nii").verdict is Verdict.refused
    assert check_file(tmp_path).verdict is Verdict.refused  # a folder without a series
    small = write_scan(tmp_path / "map.nii", np.eye(3, dtype=np.uint8)[..., None].repeat(3, axis=2))
    assert check_file(small, label_map=True).verdict is Verdict.fine
    assert check_file(small).verdict is Verdict.refused


def test_a_wrong_table_is_an_error_and_no_verdict(site: Path) -> None:
    with pytest.raises(DataError, match="unknown organ"):
        check_table(site, ("brain",))
