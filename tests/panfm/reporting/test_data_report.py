"""The site's page on its own data: refused and outlying scans first, names escaped, pictures inside, nothing outside."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from panfm.reporting.data_report import (
    CheckedScan,
    DataSummary,
    PresenceRow,
    Slice,
    grid_table,
    organ_set_table,
    organ_table,
    pictures,
    verdict_table,
    write_data_report,
)


def _scan(subject: str, verdict: str = "fine", outlier: float = 0.0, organ: str = "liver") -> CheckedScan:
    refused = verdict == "refused"
    grey = np.full((8, 8), 90, dtype=np.uint8)
    drawn = np.zeros((8, 8), dtype=np.bool_)
    drawn[2:6, 2:6] = True
    return CheckedScan(
        subject=subject,
        visit="",
        organ=organ,
        file=f"{subject}.nii.gz",
        verdict=verdict,
        codes=() if verdict == "fine" else ("gzip",),
        messages=() if verdict == "fine" else ("the stream is damaged",),
        shape=() if refused else (4, 5, 6),
        spacing_mm=() if refused else (1.0, 1.0, 2.0),
        organ_ml=None if refused else 12.0,
        outlier=outlier,
        outlier_in="organ volume" if outlier else "",
        slices=() if refused else (Slice(plane="axial", grey=grey, organ=drawn),),
    )


SCANS = (
    _scan("fine"),
    _scan("mended", "repaired"),
    _scan("odd", outlier=9),
    _scan("worse", outlier=12),
    _scan("gone", "refused"),
)


def _summary(*scans: CheckedScan) -> DataSummary:
    return DataSummary(
        panfm_version="1",
        organs=("brain", "liver"),
        scans=scans,
        organ_sets={("liver",): 4, (): 1},
        missingness=(PresenceRow(name="all", num_subjects=5, having={"brain": 0, "liver": 4}),),
        outlier_from=3.5,
    )


def test_refused_then_outliers_then_repaired() -> None:
    assert [row.header.text for row in verdict_table(SCANS, 3.5).rows] == ["gone", "worse", "odd", "mended"]


def test_many_findings_are_cut_and_say_so() -> None:
    table = verdict_table([_scan(f"s{i}", "refused") for i in range(500)], 3.5)
    assert len(table.rows) == 400
    assert "100 more are in check.csv" in table.caption


def test_pictures_most_unusual_first() -> None:
    assert [picture.name for picture in pictures(_summary(*SCANS), "liver")][:2] == ["worse", "odd"]


def test_counts() -> None:
    (row,) = organ_table(SCANS, ["liver"]).rows
    assert [cell.text for cell in row.cells][:4] == ["5", "3", "1", "1"]
    (grid,) = grid_table(SCANS, ["liver"]).rows
    assert [cell.text for cell in grid.cells] == ["1 × 1 × 2", "4", "4 × 5 × 6", "4 × 5 × 6"]
    assert [cell.text for cell in organ_set_table({("liver",): 4, (): 1}, ["liver"]).rows[-1].cells] == ["4"]


def test_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    page = write_data_report(tmp_path / "check.html", _summary(*SCANS, _scan("<script>", "refused")))
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert text.count("data:image/png;base64") == 4
    assert "It stays at the hospital" in text
    assert "2 of 6 scans cannot be used" in text


def test_page_of_nothing(tmp_path: Path) -> None:
    text = write_data_report(tmp_path / "check.html", _summary(_scan("fine"))).read_text(encoding="utf-8")
    assert "All 1 scans can be used" in text
    assert "Every scan is fine" in text
