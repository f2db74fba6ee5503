"""What a check leaves beside the site's table: one line per scan, and the page, with labels where there are any."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from panfm.data.check import CheckReport, ScanCheck, ScanFacts
from panfm.data.manifest import LabelTable, write_labels
from panfm.data.quality import Finding
from panfm.errors import DataError
from panfm.site.check_report import write_check_report

FACTS = ScanFacts(
    shape=(4, 5, 6), spacing_mm=(1.0, 1.0, 2.0), axes="RAS", organ_ml=1.0, intensities=(1.0, 2.0, 3.0), digest="d"
)
REPORT = CheckReport(
    organs=("brain", "liver"),
    scans=(
        ScanCheck(subject="s1", visit="", organ="brain", file="a.nii", facts=FACTS),
        ScanCheck(
            subject="s2", visit="v1", organ="liver", file="b.nii", findings=(Finding("gzip", "damaged; copy again"),)
        ),
    ),
)


def test_both_files_are_written(tmp_path: Path) -> None:
    table = LabelTable(names=("age",), subjects=("s1", "s2"), visits=("", ""), values=np.array([[50.0], [60.0]]))
    write_labels(tmp_path / "labels.csv", table)
    csv_path, page = write_check_report(tmp_path / "out", REPORT, tmp_path / "labels.csv")
    assert csv_path.read_text(encoding="utf-8").splitlines()[2].startswith("s2,v1,liver,b.nii,refused,gzip,damaged")
    text = page.read_text(encoding="utf-8")
    assert "1 of 2 scans cannot be used" in text
    assert "age 50" in text


def test_labels_need_not_be_there(tmp_path: Path) -> None:
    _, page = write_check_report(tmp_path, REPORT, tmp_path / "labels.csv")
    assert "age" not in page.read_text(encoding="utf-8").partition("Who has what")[2].partition("</section>")[0].split()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match="choose another folder"):
        write_check_report(tmp_path / "file", REPORT, tmp_path / "labels.csv")
