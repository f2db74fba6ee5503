"""A site's own table, with its own headers and separators; a bad line costs that line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from panfm.data.index.label_lists import label_list
from panfm.errors import ConfigError, DataError
from panfm.organs import SEVEN_ORGANS
from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume, listed, reasons

COLUMNS = {"subject": "PatientKey", "path": "Datei", "organ": "Region", "age": "Alter", "sex": "Sex"}


def _table(tmp_path: Path, *lines: str, encoding: str = "utf-8") -> None:
    (tmp_path / "pacs.csv").write_text("\n".join(lines) + "\n", encoding=encoding)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_by_the_sites_own_names(
    tmp_path: Path, write_volume: WriteVolume, index: Index, separator: str
) -> None:
    write_volume("a.nii.gz")
    write_volume("b.nii.gz")
    lines = (
        ("PatientKey", "Name", "Datei", "Region", "Alter", "Sex", "visit"),
        ("17", "Meier", "a.nii.gz", "liver", "61", "f", "1"),
        ("17", "Meier", "b.nii.gz", "Niere", "62", "f", "2"),
        ("18", "Huber", "gone.nii.gz", "liver", "50", "m", "1"),
        ("19", "Weber", "a.nii.gz", "knee", "50", "m", "1"),
        ("", "Nobody", "a.nii.gz", "liver", "50", "m", "1"),
    )
    _table(tmp_path, *(separator.join(line) for line in lines), encoding="utf-8-sig")
    found = index("pacs.csv", organ=("kidney=Niere",), columns=COLUMNS)
    assert listed(found) == {
        (KEY.subject("17"), KEY.visit("17", "1"), "liver", "a.nii.gz"),
        (KEY.subject("17"), KEY.visit("17", "2"), "kidney", "b.nii.gz"),
    }
    assert reasons(found) == {
        "pacs.csv line 4": "cell",
        "pacs.csv line 5": "unknown_organ",
        "pacs.csv line 6": "empty_cell",
    }
    assert found.labels is not None
    ages = dict(zip(found.labels.visits, found.labels.values[:, 0], strict=True))
    assert ages == {KEY.visit("17", "1"): 61.0, KEY.visit("17", "2"): 62.0}
    assert set(found.labels.values[:, 1]) == {0.0}


def test_every_column_of_the_sites_table_is_passed_on(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("a.nii.gz")
    write_volume("m.nii.gz", labels=(2, 3))
    header = "subject,organ,path,volume,label_map,label_ids,window,split"
    _table(tmp_path, header, "s,kidney,a.nii.gz,1,m.nii.gz,2 3,-10 10,test")
    (row,) = index("pacs.csv").rows
    assert (row.volume, row.label_ids, row.window, row.split) == (1, (2, 3), (-10.0, 10.0), "test")
    assert row.label_map == (tmp_path / "m.nii.gz",)
    _table(tmp_path, "subject,organ,path,box", "s,kidney,a.nii.gz,0:2 1:3 2:4")
    assert index("pacs.csv").rows[0].box == ((0, 2), (1, 3), (2, 4))


def test_organs_of_a_line_without_organ_come_from_its_label_map(
    tmp_path: Path, write_volume: WriteVolume, index: Index
) -> None:
    write_volume("a.nii.gz")
    write_volume("m.nii.gz", labels=(1, 5, 52))
    _table(tmp_path, "subject,path,label_map", "s,a.nii.gz,m.nii.gz")
    found = index("pacs.csv", table_labels=label_list("totalsegmentator_ct", SEVEN_ORGANS))
    assert {row.organ: row.label_ids for row in found.rows} == {"liver": (5,), "spleen": (1,)}


@pytest.mark.parametrize(
    "cells",
    ["0:1,,,,", ",5 1,,,", ",,-1,,", ",,,kidney,", ",,,,train"],
    ids=["box", "window", "volume", "label_ids", "split"],
)
def test_a_cell_that_cannot_be_read_costs_its_line(
    tmp_path: Path, write_volume: WriteVolume, index: Index, cells: str, request: pytest.FixtureRequest
) -> None:
    write_volume("a.nii.gz")
    _table(
        tmp_path,
        "subject,organ,path,box,window,volume,label_ids,split",
        f"s,liver,a.nii.gz,{cells}",
        "t,liver,a.nii.gz,,,,,",
    )
    found = index("pacs.csv")
    assert [row.subject for row in found.rows] == [KEY.subject("t")]
    (skipped,) = found.skipped
    assert skipped.reason.startswith(f"its {request.node.callspec.id} cannot be read")


def test_tables_that_cannot_be_read(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("a.nii.gz")
    _table(tmp_path, "patient,file", "s,a.nii.gz")
    with pytest.raises(ConfigError, match=r"lacks a column for subject, path; it has patient, file; say --column"):
        index("pacs.csv")
    with pytest.raises(ConfigError, match="lacks a column for visit"):
        index("pacs.csv", columns={"subject": "patient", "path": "file", "visit": "date"})
    with pytest.raises(ConfigError, match="patient"):
        index("pacs.csv", columns={"patient": "subject"})
    _table(tmp_path, "subject,organ,path,split", "s,liver,a.nii.gz,test", "s,spleen,a.nii.gz,pretrain")
    with pytest.raises(DataError, match="1 subjects are in several splits"):
        index("pacs.csv")
    (tmp_path / "pacs.csv").write_bytes("subject,path\nMüller,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        index("pacs.csv")
    with pytest.raises(DataError, match="correct the path"):
        index("none.csv")
