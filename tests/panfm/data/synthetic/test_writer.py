"""The written site: tables and files as promised, the same bytes twice, and no organ that depends on another."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from panfm.config import Missingness
from panfm.data.manifest import COLUMNS, read_labels, read_scan_table
from panfm.data.synthetic import LABELS, SyntheticSite, scanner_of, write_synthetic_site
from panfm.data.synthetic.scanner import recommended_grids
from panfm.errors import ConfigError
from panfm.organs import SEVEN_ORGANS

VOXELS = 16
NIBABEL: Any = nib  # its functions carry no types


def write(folder: Path, organs: tuple[str, ...] = ("liver", "spleen"), subjects: int = 4, **changes: Any) -> Path:
    settings: dict[str, Any] = {"seed": 9, "voxels": VOXELS, "missingness": Missingness.mcar, "missing_rate": 0.0}
    write_synthetic_site(folder, SyntheticSite("north", organs, subjects), **settings | changes)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def scans(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "scans").iterdir())}


def canonical(path: Path) -> Any:
    return NIBABEL.as_closest_canonical(nib.load(path))


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "one", missing_rate=0.3)
    two = write(tmp_path / "two", missing_rate=0.3)
    assert scans(one) == scans(two)
    assert (one / "scans.csv").read_text() == (two / "scans.csv").read_text()
    assert (one / "labels.csv").read_text() == (two / "labels.csv").read_text()
    assert scans(one) != scans(write(tmp_path / "three", missing_rate=0.3, seed=10))


def test_tables_say_what_lies_on_the_disk(tmp_path: Path) -> None:
    folder = write(tmp_path, SEVEN_ORGANS, missing_rate=0.3, split="train")
    rows = table(folder / "scans.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert {Path(row["path"]).name for row in rows} == set(scans(folder))
    assert all(row["path"] == f"scans/{row['subject']}_{row['organ']}.nii" for row in rows)
    assert {(row["visit"], row["split"], row["label_map"], row["box"]) for row in rows} == {("1", "train", "", "")}
    people = table(folder / "labels.csv")
    assert list(people[0]) == ["subject", "visit", "age", "sex", *LABELS]
    assert [row["subject"] for row in people] == [f"sub-{i:05d}" for i in range(4)]
    assert {row[name] for row in people for name in ("sex", *LABELS)} <= {"0", "1"}
    assert {row["subject"] for row in rows} == {row["subject"] for row in people}  # each keeps an organ


def test_the_site_reads_back_through_its_own_tables(tmp_path: Path) -> None:
    folder = write(tmp_path, SEVEN_ORGANS)
    assert len(read_scan_table(folder / "scans.csv", SEVEN_ORGANS)) == 4 * 7
    assert read_labels(folder / "labels.csv").values.shape == (4, 2 + len(LABELS))


def test_an_organ_does_not_depend_on_the_others_nor_on_the_order_of_writing(tmp_path: Path) -> None:
    everything = scans(write(tmp_path / "all", SEVEN_ORGANS, 3))
    liver = scans(write(tmp_path / "liver", ("liver",), 3))
    late = scans(write(tmp_path / "late", ("liver",), 1, first_subject=2))
    assert all(everything[name] == content for name, content in (liver | late).items())
    assert set(late) == {"sub-00002_liver.nii"}
    missing = scans(write(tmp_path / "missing", SEVEN_ORGANS, 3, missing_rate=0.5, missingness=Missingness.mnar))
    assert len(missing) < len(everything)
    assert missing.items() <= everything.items()


def test_a_scan_has_the_scanner_s_spacing_axes_and_room(tmp_path: Path) -> None:
    folder, scanner = write(tmp_path, SEVEN_ORGANS, 1), scanner_of(9, "north")
    for organ in SEVEN_ORGANS:
        image: Any = nib.load(folder / "scans" / f"sub-00000_{organ}.nii")
        assert "".join(NIBABEL.aff2axcodes(image.affine)) == scanner.axis_codes
        assert image.get_data_dtype() == np.int16
        spacing = canonical(folder / "scans" / f"sub-00000_{organ}.nii").header.get_zooms()
        assert spacing == pytest.approx(scanner.spacing_mm(recommended_grids(VOXELS)[organ]), rel=1e-5)


def test_two_scanners_see_the_same_body_once_reoriented(tmp_path: Path) -> None:
    names = tuple(f"machine {k}" for k in range(6))
    stored = {scanner_of(9, name).axis_codes for name in names}
    assert len(stored) > 2
    grids = recommended_grids(24)
    profiles = []
    for name in names:
        image = canonical(
            write(tmp_path / name, ("kidney",), 1, scanners=(name,), voxels=24) / "scans/sub-00000_kidney.nii"
        )
        voxels = np.asarray(image.dataobj, float)
        # Half of the grid's points, looked up by position relative to the middle of the scan.
        steps = [np.linspace(-0.4, 0.4, 15) * 24 * step for step in grids["kidney"].spacing_mm]
        index = [
            np.rint(step / zoom + (count - 1) / 2).astype(int)
            for step, zoom, count in zip(steps, image.header.get_zooms(), voxels.shape, strict=True)
        ]
        profiles.append(voxels[np.ix_(*index)].ravel())
    between = np.corrcoef(profiles)
    mirrored = np.corrcoef(profiles[0], profiles[1].reshape(15, 15, 15)[::-1].ravel())[0, 1]
    assert between.min() > 0.7
    assert between.min() > mirrored + 0.1  # an axis that was flipped by mistake would show


def test_scanners_take_turns(tmp_path: Path) -> None:
    folder = write(tmp_path, ("spleen",), 5, scanners=("a", "b"))
    for index in range(5):
        image: Any = nib.load(folder / "scans" / f"sub-{index:05d}_spleen.nii")
        assert f"scanner {'ab'[index % 2]}".encode() in bytes(image.header["descrip"])


def test_progress_is_told_after_each_subject(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path, ("spleen",), 3, on_subject=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_site_without_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="images no organ"):
        SyntheticSite("north", (), 3)
    with pytest.raises(ConfigError, match="unknown organ lung"):
        SyntheticSite("north", ("lung",), 3)
    with pytest.raises(ConfigError, match="at least 1 subject, got 0"):
        SyntheticSite("north", ("liver",), 0)
