"""Everything that may be a scan is found once, in an order of its own; the rest is named with its reason."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from pathlib import Path

import pytest

from panfm.data.index.site_tree import walk
from panfm.errors import DataError
from tests.panfm.data.index.site_folders import WriteVolume


def test_files_series_and_what_is_neither(tmp_path: Path, write_volume: WriteVolume, write_series: WriteVolume) -> None:
    for name in ("b.nii", "a.nii.gz", "deep/c.NII.GZ", ".hidden/d.nii", "._a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("e.mgz", "f.nrrd", "notes.txt", "a.json"):
        (tmp_path / name).write_text("x" * 300)
    write_series(tmp_path / "ct/series1")
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "annex" / "gone")
    tree = walk(tmp_path)
    assert [entry.stem for entry in tree.entries] == ["a", "b", "ct/series1", "deep/c"]
    assert {one.path: one.code for one in tree.skipped} == {
        "e.mgz": "format",
        "f.nrrd": "format",
        "gone.nii.gz": "missing_file",
    }


def test_rings_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "s.nii").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked").symlink_to(tmp_path / "a", target_is_directory=True)
    assert [entry.name for entry in walk(tmp_path).entries] == ["a/s.nii"]


@pytest.mark.parametrize("name", [b"m\xfcller.nii", b"two\nlines.nii", b"a;b.nii", b" lead.nii", b"c;d/a.nii"])
def test_names_that_a_table_cannot_hold(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    tree = walk(tmp_path)
    assert tree.entries == ()
    assert [one.code for one in tree.skipped] == ["file_name"]
    assert tree.skipped[0].path.encode()


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="correct the path"):
        walk(tmp_path / "none")
