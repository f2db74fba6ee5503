"""The index as a whole: the same bytes for the same folder and key, and no name of a person in them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panfm.data.index import build
from panfm.data.index.pseudonym import PseudonymKey
from panfm.data.manifest import read_scan_table
from panfm.errors import ConfigError, DataError
from panfm.organs import SEVEN_ORGANS
from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume

NAMES = ("Kowalska", "Barbara", "19470311", "Geheim")
"""Planted where headers and tables have people's names, birthdays and remarks."""


def _written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_written_is_read_back(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/kidney/s1.nii.gz")
    found = index("site", windows={"kidney": (1.0, 50.5)}, shares={"probe": 1.0})
    build.write_index(tmp_path / "out", found)
    assert read_scan_table(tmp_path / "out" / "scans.csv", SEVEN_ORGANS) == found.rows
    assert (found.rows[0].window, found.rows[0].split) == ((1.0, 50.5), "probe")
    assert not (tmp_path / "out" / "labels.csv").exists()
    assert json.loads((tmp_path / "out" / "index.json").read_text())["subjects_by_organ"] == {"kidney": 1}


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scans=st.sets(
        st.tuples(
            st.sampled_from(["liver", "spleen", "kidney"]), st.from_regex(r"[A-Za-z][\w.-]{0,6}", fullmatch=True)
        ),
        min_size=1,
        max_size=8,
    ),
    seed=st.integers(0, 9),
)
def test_order_on_disk_and_second_runs_change_no_byte(
    tmp_path: Path, write_volume: WriteVolume, index: Index, scans: set[tuple[str, str]], seed: int
) -> None:
    template = write_volume("template.nii.gz")
    written = []
    for order in (sorted(scans), random.Random(seed).sample(sorted(scans), len(scans))):
        shutil.rmtree(tmp_path / "site", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for organ, subject in order:
            (tmp_path / "site" / organ).mkdir(parents=True, exist_ok=True)
            shutil.copy(template, tmp_path / "site" / organ / f"{subject}.nii.gz")
        for _ in range(2):
            build.write_index(tmp_path / "out", index("site", "organs"))
            written.append(_written(tmp_path / "out"))
    assert all(one == written[0] for one in written)


def test_no_name_reaches_a_table(
    tmp_path: Path, write_volume: WriteVolume, index: Index, write_series: WriteVolume
) -> None:
    """Names stand in NIfTI and DICOM headers, in participants.tsv, in other columns, in BIDS labels; not in file paths."""
    series = write_series(
        tmp_path / "pacs/0001", PatientID=NAMES[2], PatientName=f"{NAMES[0]}^{NAMES[1]}", PatientBirthDate=NAMES[2]
    )
    write_series(tmp_path / "pacs/0002", PatientID="", StudyDescription=NAMES[3])
    header = f"ID,Name,Born,File,organ,age,Remark\n{NAMES[0]},{NAMES[1]},{NAMES[2]},pacs/0001,liver,61,{NAMES[3]}\n"
    (tmp_path / "pacs.csv").write_text(
        header + f"{NAMES[1]},x,x,pacs/0001,{NAMES[3]},1,x\n{NAMES[1]},,,{NAMES[1]},liver,,\n"
    )
    write_volume("organs/liver/a.nii.gz", descrip=NAMES[0], db_name=NAMES[1], aux_file=NAMES[3])
    participants = f"subject,age,sex,name\na,61,F,{NAMES[0]}\n{NAMES[1]},50,M,x\n"
    (tmp_path / "people.csv").write_text(participants)
    columns = {"subject": "ID", "path": "File"}
    misled = {**columns, "window": "Remark"}
    runs: tuple[Any, ...] = (
        index("pacs", "dicom", organ=("liver",)),
        index("pacs.csv", columns=columns),
        index("organs", participants=tmp_path / "people.csv", columns={"subject": "subject"}),
    )
    assert series.is_dir()
    assert index("pacs.csv", columns=misled).skipped[0].reason.startswith("its window cannot be read")
    for number, found in enumerate(runs):
        assert len(found.rows) == 1
        build.write_index(tmp_path / f"out{number}", found)
    everything = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("out*/*")))
    assert b"s-" in everything
    assert [name for name in NAMES if name.lower().encode() in everything.lower()] == []


def test_site_names_stand_in_paths_only(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume(f"site/sub-{NAMES[0]}/ses-{NAMES[2]}/anat/sub-{NAMES[0]}_ses-{NAMES[2]}_T1w.nii.gz")
    (tmp_path / "site/participants.tsv").write_text(f"participant_id\tage\nsub-{NAMES[0]}\t61\n")
    build.write_index(tmp_path / "out", index("site", organ=("brain",)))
    for path in (tmp_path / "out").glob("*.csv"):
        with path.open(newline="") as stream:
            cells = [f"{value}" for row in csv.DictReader(stream) for column, value in row.items() if column != "path"]
        assert not any(name in cell for name in NAMES for cell in cells), path.name


def test_splits_are_of_people(write_volume: WriteVolume, index: Index) -> None:
    for person in range(12):
        for visit in ("v1", "v2"):
            write_volume(f"site/liver/p{person}/{visit}.nii.gz")
    found = index("site", shares={"pretrain": 0.5, "test": 0.5})
    splits = {(row.subject, row.split) for row in found.rows}
    assert len(splits) == len({row.subject for row in found.rows}) == 12
    assert {split for _, split in splits} == {"pretrain", "test"}


def test_tables_of_another_key_are_not_overwritten(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/liver/s1.nii.gz")
    found = index("site")
    build.write_index(tmp_path / "out", found)
    before = _written(tmp_path / "out")
    with pytest.raises(DataError, match="made with another key"):
        build.write_index(tmp_path / "out", replace(found, key=PseudonymKey(bytes(32)).fingerprint))
    assert _written(tmp_path / "out") == before


def test_pseudonyms_that_meet_are_refused(
    write_volume: WriteVolume, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume("site/liver/s1.nii.gz")
    write_volume("site/spleen/s2.nii.gz")
    monkeypatch.setattr(PseudonymKey, "subject", lambda self, person: "s-same")
    with pytest.raises(DataError, match="under one pseudonym"):
        index("site")


def test_layouts_that_cannot_be_told(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("flat/s1.nii.gz")
    with pytest.raises(ConfigError, match=r"no layout fits .* say --layout"):
        index("flat")
    write_volume("both/sub-1/anat/sub-1_T1w.nii.gz")
    write_volume("both/liver/s1.nii.gz")
    with pytest.raises(ConfigError, match=r"several layouts fit .* bids, organs"):
        index("both")
    with pytest.raises(ConfigError, match="needs --scan"):
        index("flat", "pattern")
    with pytest.raises(DataError, match="correct the path"):
        index("none")


def test_nothing_found_says_why(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("site/lung/s1.nii.gz")
    with pytest.raises(DataError, match=r"1 unknown_organ.*lung/s1\.nii\.gz: this study knows brain"):
        build.write_index(tmp_path / "out", index("site", "organs"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no NIfTI file and no DICOM series"):
        build.write_index(tmp_path / "out", index("empty", "organs"))
    assert not (tmp_path / "out").exists()


def test_real_heart_and_kidney_folders(real_data: Path, tmp_path: Path, index: Index) -> None:
    (tmp_path / "data").symlink_to(real_data)
    hearts = index("data/heart_sunnybrook", scan=("{subject}_{visit}",), label_map=("{subject}_{visit}_gt=heart",))
    assert (len(hearts.rows), len({row.subject for row in hearts.rows})) == (6, 3)
    (tmp_path / "k.yaml").write_text("kidney: [L, R]\n")
    masks = f"{{subject}}/*_e1_roi-{{label}}={tmp_path / 'k.yaml'}"
    kidneys = index("data/kidney_ukat", scan=("{subject}/*_e1",), label_map=(masks,))
    assert len(kidneys.rows) == 3
    assert {len(row.label_map) for row in kidneys.rows} == {2}
    assert [s.path.split("/")[0] for s in kidneys.skipped if s.code == "several_scans"] == ["philips_01"] * 2


def test_real_body_scans(real_data: Path, tmp_path: Path, index: Index) -> None:
    (tmp_path / "data").symlink_to(real_data)
    where = ("{subject}_seg_fast_force_split=totalsegmentator_ct",)
    found = index("data/abdomen_totalsegmentator", scan=("{subject}_ct",), label_map=where)
    # example_ct ends below the heart, whose label (51) is not in its map.
    assert {row.organ: row.label_ids for row in found.rows} == {
        "liver": (5,),
        "kidney": (2, 3),
        "spleen": (1,),
        "pancreas": (7,),
    }
    where = ("{subject}_seg_dicom=totalsegmentator_ct",)
    series = index("data/abdomen_totalsegmentator", scan=("{subject}_ct_dicom",), label_map=where)
    assert {row.organ for row in series.rows} == {"liver", "spleen", "pancreas"}
    assert {row.subject for row in series.rows} == {row.subject for row in found.rows} == {KEY.subject("example")}
