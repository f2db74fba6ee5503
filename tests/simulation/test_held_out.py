"""A pretend hospital holds out whole subjects, as many as were asked for, and the same ones each time."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest

from panfm.data.manifest import ScanRow, read_scan_table, write_scan_table
from simulation.held_out import hold_out

ORGANS = ("brain", "heart")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scan = tmp_path / "x.nii"
    scan.touch()
    rows = [ScanRow(subject=f"sub-{n:02d}", organ=organ, path=scan) for n in range(10) for organ in ORGANS[: 1 + n % 2]]
    rows.append(ScanRow(subject="sub-99", organ="brain", path=scan, split="test"))
    write_scan_table(tmp_path / "scans.csv", rows)
    return tmp_path


def _held_out(folder: Path) -> set[str]:
    return {row.subject for row in read_scan_table(folder / "scans.csv", ORGANS) if row.split == "validation"}


@pytest.mark.parametrize(("share", "number"), [(0.0, 0), (0.3, 3), (0.34, 3), (0.99, 9)])
def test_a_share_of_the_subjects_with_all_their_scans(folder: Path, share: float, number: int) -> None:
    before = read_scan_table(folder / "scans.csv", ORGANS)
    hold_out(folder, share, ORGANS, seed=1)
    after = read_scan_table(folder / "scans.csv", ORGANS)
    held = _held_out(folder)
    assert len(held) == number
    assert [row.subject for row in after] == [row.subject for row in before]
    assert all((row.split == "validation") is (row.subject in held) for row in after)
    assert "sub-99" not in held, "who is held out for something else stays there"


def test_who_is_chosen_depends_on_the_seed(folder: Path) -> None:
    chosen = []
    for seed in (1, 1, 2):
        write_scan_table(
            folder / "scans.csv",
            [ScanRow(subject=f"sub-{n:02d}", organ="brain", path=folder / "x.nii") for n in range(20)],
        )
        hold_out(folder, 0.5, ORGANS, seed)
        chosen.append(_held_out(folder))
    assert chosen[0] == chosen[1] != chosen[2]
