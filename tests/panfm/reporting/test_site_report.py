"""A hospital's own report shows its scans to the hospital, says so, and stands alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from panfm.errors import DataError
from panfm.reporting.site_report import (
    AnsweredRound,
    PreparedOrgan,
    RefusedScan,
    SiteSummary,
    read_refused,
    write_site_report,
)
from panfm.reporting.slices import OrganPicture

ReadPage = Callable[[Path], Any]


def pictures(organ: str, num_subjects: int, masked: bool = False) -> list[OrganPicture]:
    volume = np.arange(8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    return [
        OrganPicture(
            organ=organ,
            subject=f"sub-{i}",
            volume=volume,
            spacing_mm=(1, 1, 4),
            patch=4,
            masked_patches=np.full((2, 2, 2), i % 2 == 1),
            organ_masked=masked,
        )
        for i in range(num_subjects)
    ]


SUMMARY = SiteSummary(
    run="demo",
    prepared=[PreparedOrgan(organ="liver", num_subjects=31, num_scans=40, shape=(32, 32, 16), spacing_mm=(3, 3, 5.5))],
    refused=[RefusedScan(subject="sub-9", visit="", organ="liver", code="flat", reason="all voxels are equal")],
    rounds=[
        AnsweredRound(round=1, answer="update", loss=0.41, collapse_loss=0.4, seconds=2.0),
        AnsweredRound(round=2, answer="refusal", reason="one round a day"),
    ],
)


def test_numbers_reasons_and_the_warning_stand_on_the_page(tmp_path: Path, read_page: ReadPage) -> None:
    page = read_page(write_site_report(tmp_path, "north", pictures("liver", 2), SUMMARY))
    assert "This page shows patients' scans. It stays at the hospital." in page.words
    held = page.table("What the prepared store holds")["liver"]
    assert (held["subjects"], held["scans"], held["spacing, mm"]) == ("31", "40", "3 × 3 × 5.5")
    assert page.table("Scans that were not prepared")["sub-9"]["reason"] == "all voxels are equal"
    rounds = page.table("What this site answered")
    assert rounds["1"]["loss"] == "0.410"
    assert rounds["2"]["reason"] == "one round a day"


def test_at_most_four_subjects_of_an_organ_in_three_planes(tmp_path: Path, read_page: ReadPage) -> None:
    page = read_page(write_site_report(tmp_path, "north", pictures("liver", 9) + pictures("heart", 1), SUMMARY))
    assert len(page.attributes("image", "href")) == (4 + 1) * 3
    assert all(href.startswith("data:image/png;base64,") for href in page.attributes("image", "href"))
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img")]
    assert all(label.startswith(("axial", "coronal", "sagittal")) for label in page.attributes("svg", "aria-label"))


def test_a_masked_organ_is_tagged_and_a_seen_one_is_not(tmp_path: Path, read_page: ReadPage) -> None:
    seen = read_page(write_site_report(tmp_path, "north", pictures("liver", 2), SUMMARY)).words
    hidden = read_page(write_site_report(tmp_path, "north", pictures("liver", 2, masked=True), SUMMARY)).words
    assert hidden.count("all of it was hidden in this draw") == 2
    assert "all of it was hidden in this draw" not in seen
    assert "0 % of patches hidden" in seen
    assert "100 % of patches hidden" in seen


def test_an_empty_site_says_what_is_missing(tmp_path: Path, read_page: ReadPage) -> None:
    words = read_page(write_site_report(tmp_path / "new", "<b>north</b>", [], SiteSummary())).words
    for said in ("<b>north</b>", "Nothing has been prepared yet", "No scan was refused", "No picture was made"):
        assert said in words


def test_equal_sites_give_equal_bytes(tmp_path: Path) -> None:
    written = [write_site_report(tmp_path / n, "north", pictures("liver", 2), SUMMARY).read_bytes() for n in "ab"]
    assert written[0] == written[1]


def test_refused_scans_are_read_from_the_store(tmp_path: Path) -> None:
    table = tmp_path / "refused.csv"
    assert read_refused(table) == ()
    table.write_text('subject,visit,organ,code,reason\nsub-9,,liver,flat,"all voxels are equal, export again"\n')
    (scan,) = read_refused(table)
    assert (scan.subject, scan.visit, scan.reason) == ("sub-9", "", "all voxels are equal, export again")
    table.write_text("subject,organ\nsub-9,liver\n")
    with pytest.raises(DataError, match="visit, code, reason"):
        read_refused(table)
