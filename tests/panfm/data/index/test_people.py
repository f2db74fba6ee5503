"""Age and sex as numbers, for the visits that they are known to belong to, and for nobody else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from pathlib import Path

import pytest

from panfm.data.index.people import Person, read_people
from panfm.errors import ConfigError, DataError
from tests.panfm.data.index.site_folders import KEY, Index, WriteVolume


def _write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_bids_participants(tmp_path: Path) -> None:
    lines = ("participant_id\tage\tsex\tgroup", "sub-01\t61.5\tM\tx", "sub-02\t89+\tO\tx", "sub-03\tn/a\tfemale\tx")
    people = read_people(_write(tmp_path / "participants.tsv", *lines), {})
    assert people[("01", "")] == Person(61.5, 1.0)
    assert math.isnan(people[("02", "")].age)
    assert math.isnan(people[("02", "")].sex_male)
    assert math.isnan(people[("03", "")].age)
    assert people[("03", "")].sex_male == 0.0


def test_mapped_columns_and_contradictions(tmp_path: Path) -> None:
    path = _write(tmp_path / "people.csv", "MRID,Age,Sex", "a,40,M", "a,,M")
    assert read_people(path, {"subject": "MRID", "age": "Age", "sex": "Sex"}) == {("a", ""): Person(40.0, 1.0)}
    with pytest.raises(ConfigError, match="--column subject=HEADER"):
        read_people(path, {})
    path = _write(tmp_path / "people.csv", "MRID,Age", "a,40", "a,41")
    with pytest.raises(DataError, match="line 3 gives another age"):
        read_people(path, {"subject": "MRID", "age": "Age"})


def test_an_age_without_a_visit_counts_for_people_with_one_visit(
    tmp_path: Path, write_volume: WriteVolume, index: Index
) -> None:
    for name in ("sub-01/ses-a/anat/sub-01_ses-a", "sub-02/ses-a/anat/sub-02_ses-a", "sub-02/ses-b/anat/sub-02_ses-b"):
        write_volume(f"bids/{name}_T1w.nii.gz")
    _write(
        tmp_path / "bids/participants.tsv", "participant_id\tage\tsex", "sub-01\t60\tF", "sub-02\t70\tM", "sub-9\t1\tM"
    )
    labels = index("bids", organ=("brain",)).labels
    assert labels is not None
    values = {
        (subject, visit): tuple(line)
        for subject, visit, line in zip(labels.subjects, labels.visits, labels.values, strict=True)
    }
    assert values.pop((KEY.subject("01"), KEY.visit("01", "a"))) == (60.0, 0.0)
    assert {subject for subject, _ in values} == {KEY.subject("02")}
    assert [(math.isnan(age), sex) for age, sex in values.values()] == [(True, 1.0), (True, 1.0)]


def test_nothing_known_no_table(tmp_path: Path, write_volume: WriteVolume, index: Index) -> None:
    write_volume("bids/sub-01/anat/sub-01_T1w.nii.gz")
    assert index("bids", organ=("brain",)).labels is None
    _write(tmp_path / "bids/participants.tsv", "participant_id\tage", "sub-01\tn/a")
    assert index("bids", organ=("brain",)).labels is None
