"""Outliers, organ sets and missingness, against counts made by hand."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.data.check import CheckReport, ScanCheck, ScanFacts
from panfm.data.manifest import LabelTable
from panfm.data.overview import OUTLIER, grid_ranges, missingness, organ_sets, outliers, robust_z, subjects_with
from panfm.data.quality import Finding


def _scan(
    subject: str, organ: str, ml: float = 100.0, spacing: float = 1.0, p50: float = 5.0, *, refused: bool = False
) -> ScanCheck:
    facts = ScanFacts(
        shape=(10, 11, 12),
        spacing_mm=(spacing, spacing, spacing),
        axes="RAS",
        organ_ml=ml,
        intensities=(p50 - 4, p50, p50 + 4),
        digest="",
    )
    findings = (Finding("gzip", "damaged"),) if refused else ()
    return ScanCheck(
        subject=subject, visit="", organ=organ, file="f", findings=findings, facts=None if refused else facts
    )


def _report(*scans: ScanCheck) -> CheckReport:
    return CheckReport(organs=("brain", "liver"), scans=scans)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_robust_z_is_finite_and_centred(values: list[float]) -> None:
    scores = robust_z(values, 0.05)
    assert all(math.isfinite(score) for score in scores)
    assert min(scores) <= 1e-9
    assert max(scores) >= -1e-9


def test_robust_z_of_a_normal_sample_is_its_z_score() -> None:
    sample = np.random.default_rng(0).standard_normal(20_001)
    expected = (sample - np.median(sample)) / sample.std()
    np.testing.assert_allclose(robust_z(sample.tolist(), 1e-9), expected, rtol=0.03, atol=1e-6)


def test_outliers_stand_out_in_what_is_odd() -> None:
    normal = [_scan(f"s{i}", "liver", ml=100 + i) for i in range(9)]
    odd = [_scan("big", "liver", ml=3000), _scan("coarse", "liver", spacing=4), _scan("bright", "liver", p50=500)]
    few = [_scan("s0", "brain", ml=ml) for ml in (1, 1, 1e6)]
    gone = _scan("s20", "liver", refused=True)
    scores = outliers(_report(*normal, *odd, *few, gone))
    assert max(score for score, _ in scores[:9]) < OUTLIER
    assert next((name, score > OUTLIER) for score, name in scores[9:12]) == ("organ volume", True)
    assert scores[10][1] in ("finest spacing", "coarsest spacing", "shortest side", "longest side")
    assert scores[11][1].startswith("intensity")
    assert min(score for score, _ in scores[9:12]) > OUTLIER
    assert scores[12:] == ((0.0, ""),) * 4


def test_organ_sets_count_subjects_and_refused_scans_as_absent() -> None:
    report = _report(
        _scan("a", "brain"),
        _scan("a", "liver"),
        _scan("b", "liver"),
        _scan("b", "brain", refused=True),
        _scan("c", "liver"),
        _scan("d", "brain", refused=True),
    )
    assert organ_sets(report) == {("liver",): 2, (): 1, ("brain", "liver"): 1}
    assert subjects_with(report, "liver") == 3
    assert grid_ranges(report, "liver") == ("1", "10 to 12")
    assert grid_ranges(_report(), "liver") == ("", "")


def test_missingness_by_sex_and_age() -> None:
    report = _report(*[_scan(f"s{i}", "brain" if i % 2 else "liver") for i in range(12)])
    values = [[float(i % 3 == 0), 20.0 + i, 7.0] for i in range(11)]
    table = LabelTable(
        names=("sex_male", "age", "outcome"),
        subjects=tuple(f"s{i}" for i in range(11)),
        visits=("",) * 11,
        values=np.array(values),
    )
    groups = {group.name: group for group in missingness(report, table)}
    assert groups["all"].having == {"brain": 6, "liver": 6}
    assert groups["sex_male 1"].having == {"brain": 2, "liver": 2}
    assert (groups["sex_male 0"].num_subjects, groups["sex_male unknown"].num_subjects) == (7, 1)
    ages = [group for name, group in groups.items() if name.startswith("age ")]
    assert sum(group.num_subjects for group in ages) == 12
    assert len(ages) == 5
    assert not any(name.startswith("outcome") for name in groups)
    assert [group.name for group in missingness(report, None)] == ["all"]


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_and_one(count: int) -> None:
    report = _report(*[_scan("a", "brain")] * count)
    assert missingness(report, None)[0].num_subjects == count
    assert outliers(report) == ((0.0, ""),) * count
