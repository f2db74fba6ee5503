"""Tables come back as they were written; what is wrong in them is said in one line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.data.manifest import LabelTable, ScanRow, read_labels, read_scan_table, write_labels, write_scan_table
from panfm.errors import DataError

ORGANS = ("brain", "kidney")


def _table(folder: Path, *lines: str, header: str = "subject,visit,organ,path") -> Path:
    (folder / "a.nii").touch()
    path = folder / "scans.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def test_round_trip(tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "pacs"
    for path in (site / "scan.nii", elsewhere / "left.nii", elsewhere / "right.nii"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    rows = (
        ScanRow(subject="sub-1", organ="brain", path=site / "scan.nii"),
        ScanRow(
            subject="sub-1",
            visit="v2",
            organ="kidney",
            path=site / "scan.nii",
            volume=3,
            label_map=(elsewhere / "left.nii", elsewhere / "right.nii"),
            label_ids=(2, 3),
            box=((0, 4), (1, 5), (2, 6)),
            window=(-190.0, -30.5),
            split="train",
        ),
    )
    write_scan_table(site / "scans.csv", rows)
    assert read_scan_table(site / "scans.csv", ORGANS) == rows
    text = (site / "scans.csv").read_text(encoding="utf-8")
    assert ",scan.nii," in text, "files of the site are named relative to its table"
    assert f"{elsewhere}/left.nii;{elsewhere}/right.nii" in text


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    path = _table(tmp_path, "s1,brain,a.nii", header="subject,organ,path")
    assert read_scan_table(path, ORGANS) == (ScanRow(subject="s1", organ="brain", path=tmp_path / "a.nii"),)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "no rows"),
        (("s1,,liver,a.nii",), r"line 2: unknown organ 'liver': this study knows brain, kidney"),
        (("s1,,brain,a.nii", "s1,,brain,a.nii"), "lists s1 / brain twice"),
        (("s1,v,brain,a.nii", "s1,v,brain,a.nii"), "lists s1 / v / brain twice"),
        (("s1,,brain,gone.nii",), r"line 2: no file and no DICOM series .*gone\.nii"),
        ((",,brain,a.nii",), "line 2: subject must not be empty"),
        (("s1,,brain,",), "line 2: path must not be empty"),
        (("../up,,brain,a.nii",), "subject and visit should be"),
        (("s1,a b,brain,a.nii",), "subject and visit should be"),
    ],
)
def test_wrong_rows(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_scan_table(_table(tmp_path, *lines), ORGANS)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("box", "0:4 0:4"),
        ("box", "4:0 0:4 0:4"),
        ("box", "0:4 0:4 0:4 0:4"),
        ("window", "5"),
        ("window", "5 1"),
        ("window", "low high"),
        ("label_ids", "2.5"),
        ("label_ids", "kidney"),
        ("label_map", "gone.nii"),
        ("volume", "-1"),
        ("volume", "first"),
    ],
)
def test_wrong_cells(tmp_path: Path, column: str, value: str) -> None:
    path = _table(tmp_path, f"s1,brain,a.nii,{value}", header=f"subject,organ,path,{column}")
    with pytest.raises(DataError, match=rf"scans\.csv line 2: .*{value.split()[0][:4]}"):
        read_scan_table(path, ORGANS)


def test_a_path_may_be_the_folder_of_a_series(tmp_path: Path, write_series: Callable[..., Path]) -> None:
    write_series(tmp_path / "ct")
    (tmp_path / "empty").mkdir()
    path = _table(tmp_path, "s1,brain,ct", header="subject,organ,path")
    assert read_scan_table(path, ORGANS) == (ScanRow(subject="s1", organ="brain", path=tmp_path / "ct"),)
    with pytest.raises(DataError, match=r"line 2: no file and no DICOM series .*empty"):
        read_scan_table(_table(tmp_path, "s1,brain,empty", header="subject,organ,path"), ORGANS)


def test_links_are_named_and_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "object-1").touch()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/scan.nii").symlink_to(tmp_path / "object-1")
    row = ScanRow(subject="s", organ="brain", path=tmp_path / "site" / ".." / "site" / "scan.nii")
    write_scan_table(tmp_path / "site/scans.csv", [row])
    assert "s,,brain,scan.nii," in (tmp_path / "site/scans.csv").read_text()


def test_missing_table_and_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_scan_table(tmp_path / "scans.csv", ORGANS)
    with pytest.raises(DataError, match="lacks column organ"):
        read_scan_table(_table(tmp_path, "s1,a.nii", header="subject,path"), ORGANS)


def test_labels_round_trip_with_unknown_values(tmp_path: Path) -> None:
    values = np.array([[61.25, np.nan], [0.1 + 0.2, 1.0]])
    write_labels(
        tmp_path / "labels.csv", LabelTable(names=("age", "sex"), subjects=("a", "b"), visits=("", "v"), values=values)
    )
    table = read_labels(tmp_path / "labels.csv")
    assert (table.names, table.subjects, table.visits) == (("age", "sex"), ("a", "b"), ("", "v"))
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject,visit,age\n", "no rows"),
        ("visit,age\nv,3\n", "lacks column subject"),
        ("subject,visit,age\na,,old\n", "line 2: age should be a number, got 'old'"),
        ("subject,visit,age\na,,1\na,,2\n", "lists a twice"),
    ],
)
def test_wrong_labels(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels.csv")
