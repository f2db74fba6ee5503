"""The pretend hospitals of the real volumes: who is where, nobody twice, and organs where the tables say."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from panfm.config import OrganGrid, PrepareConfig
from panfm.data.manifest import ScanRow, read_labels, read_scan_table
from panfm.data.prepare import prepare_scan
from panfm.errors import DataError
from panfm.organs import SEVEN_ORGANS
from simulation.real_cohort import RealCohort, write_real_hospitals


@pytest.fixture(scope="module")
def cohort(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RealCohort:
    return write_real_hospitals(real_data, tmp_path_factory.mktemp("real"), train_share=0.667, seed=0)


def _rows(folder: Path) -> tuple[ScanRow, ...]:
    return read_scan_table(folder / "scans.csv", SEVEN_ORGANS)


def test_each_hospital_has_its_organs(cohort: RealCohort) -> None:
    organs = {site: {row.organ for row in _rows(folder)} for site, folder in cohort.sites.items()}
    assert organs == {
        "abdomen": {"adipose", "liver", "kidney", "spleen", "pancreas"},
        "brain_a": {"brain"},
        "brain_b": {"brain"},
        "heart": {"heart"},
        "kidney": {"kidney"},
    }
    abdomen = _rows(cohort.sites["abdomen"])
    assert {row.subject for row in abdomen} == {"CRLM-CT-1004", "example_ct", "example_mr"}
    assert sum(row.subject == "example_ct" for row in abdomen) == 5


def test_brains_are_split_by_subject(cohort: RealCohort) -> None:
    here, there = ({row.subject for row in _rows(cohort.sites[site])} for site in ("brain_a", "brain_b"))
    evaluation = {row.subject: row.split for row in _rows(cohort.evaluation)}
    held_out = {subject for subject, split in evaluation.items() if split == "test"}
    assert here.isdisjoint(there)
    assert held_out.isdisjoint(here | there)
    assert set(evaluation) - held_out <= here | there
    # Golden: 125 brains, one without age; the hash sends 85 to training, 43 and 42 of them to the two sites.
    assert (len(here), len(there), len(evaluation), len(held_out)) == (43, 42, 124, 39)


def test_three_seeds_hold_out_each_brain_once(cohort: RealCohort, real_data: Path, tmp_path: Path) -> None:
    held_out: list[str] = []
    for seed in (0, 1, 2):
        folder = write_real_hospitals(real_data, tmp_path / str(seed), train_share=2 / 3, seed=seed).evaluation
        held_out += [row.subject for row in _rows(folder) if row.split == "test"]
    assert sorted(held_out) == sorted(row.subject for row in _rows(cohort.evaluation))


def test_no_scan_is_copied_and_tables_repeat(cohort: RealCohort, real_data: Path, tmp_path: Path) -> None:
    again = write_real_hospitals(real_data, tmp_path, train_share=0.667, seed=0)
    for site, folder in {**cohort.sites, "evaluation": cohort.evaluation}.items():
        assert (folder / "scans.csv").read_bytes() == (tmp_path / site / "scans.csv").read_bytes()
        assert {path.suffix for path in folder.iterdir()} == {".csv"}
    assert list(again.sites) == sorted(again.sites)


def test_labels_of_the_evaluation(cohort: RealCohort) -> None:
    table = read_labels(cohort.evaluation / "labels.csv")
    assert table.names == ("age", "sex_male", "brain_ml")
    assert np.isfinite(table.values).all()
    assert set(table.subjects) == {row.subject for row in _rows(cohort.evaluation)}
    age, sex, brain_ml = table.values.T
    # Brain volumes of adults, and larger ones in men on average (the README of the data: volume alone tells sex).
    assert (age.min() > 18, age.max() < 90, brain_ml.min() > 1000, brain_ml.max() < 2000) == (True,) * 4
    assert brain_ml[sex == 1].mean() > brain_ml[sex == 0].mean() + 100


def test_the_liver_lies_to_the_right_and_the_brain_is_upright(cohort: RealCohort) -> None:
    """Prepared axes are RAS+: on an abdomen-wide grid around liver and spleen together, liver is at higher x."""
    rows = {(row.subject, row.organ): row for row in _rows(cohort.sites["abdomen"])}
    grid, config = OrganGrid(shape=[32, 32, 32], spacing_mm=[7.0, 7.0, 7.0]), PrepareConfig(margin_voxels=0)
    for subject in ("example_ct", "CRLM-CT-1004"):
        liver = prepare_scan(rows[subject, "liver"], grid, config).astype(np.float32)
        # Outside the liver's side of the body lies air or nothing: the right-hand edge is emptier than the left-hand one.
        assert (liver[-2:] > -2.5).mean() < (liver[:2] > -2.5).mean()
    brain = _rows(cohort.sites["brain_a"])[0]
    volume = prepare_scan(brain, OrganGrid(shape=[32, 32, 32], spacing_mm=[6.0, 6.0, 6.0]), config).astype(np.float32)
    tissue = volume > -2.5
    # Cerebellum and brain stem reach down at the back of the head: the lowest tissue lies behind the middle.
    lowest = np.argwhere(tissue)[:, 2].min()
    assert np.argwhere(tissue[:, :, lowest : lowest + 3])[:, 1].mean() < np.argwhere(tissue)[:, 1].mean()


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"should point at the folder with brain_ixi/.*; got no such folder"):
        write_real_hospitals(tmp_path / "nowhere", tmp_path / "out", train_share=0.667, seed=0)
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"should point at the folder with brain_ixi/.*; got photos"):
        write_real_hospitals(tmp_path, tmp_path / "out", train_share=0.667, seed=0)
