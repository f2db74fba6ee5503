"""What a site keeps of a check of its scans: `check.csv` for programs, `check.html` for people, beside its table."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from panfm import __version__
from panfm.data.check import CheckReport, ScanCheck, write_check_table
from panfm.data.manifest import LabelTable, read_labels
from panfm.data.overview import OUTLIER, missingness, organ_sets, outliers
from panfm.errors import DataError
from panfm.reporting.data_report import CheckedScan, DataSummary, PresenceRow, Slice, write_data_report


def write_check_report(folder: Path, report: CheckReport, labels_path: Path) -> tuple[Path, Path]:
    """Write `check.csv` and `check.html` into the site's own folder; the page holds pictures of its patients' scans.

    Args:
        folder: where both go; made if it is not there.
        report: the verdicts.
        labels_path: the site's `labels.csv`, which need not be there.
    Raises: DataError when the labels cannot be read, or the folder cannot be written.
    """
    labels = read_labels(labels_path) if labels_path.is_file() else None
    scores = outliers(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_check_table(folder / "check.csv", report, scores)
        page = write_data_report(folder / "check.html", _summary(report, scores, labels))
    except OSError as error:
        raise DataError(f"cannot write into {folder} ({error.strerror}); choose another folder with --out") from error
    return folder / "check.csv", page


def _summary(report: CheckReport, scores: Sequence[tuple[float, str]], labels: LabelTable | None) -> DataSummary:
    return DataSummary(
        panfm_version=__version__,
        organs=report.organs,
        scans=tuple(_checked(scan, *score) for scan, score in zip(report.scans, scores, strict=True)),
        organ_sets=organ_sets(report),
        missingness=tuple(
            PresenceRow(name=group.name, num_subjects=group.num_subjects, having=group.having)
            for group in missingness(report, labels)
        ),
        outlier_from=OUTLIER,
    )


def _checked(scan: ScanCheck, outlier: float, measure: str) -> CheckedScan:
    facts = scan.facts
    return CheckedScan(
        subject=scan.subject,
        visit=scan.visit,
        organ=scan.organ,
        file=scan.file,
        verdict=scan.verdict.value,
        codes=tuple(finding.code for finding in scan.findings),
        messages=tuple(finding.message for finding in scan.findings),
        shape=facts.shape if facts else (),
        spacing_mm=facts.spacing_mm if facts else (),
        organ_ml=facts.organ_ml if facts else None,
        outlier=outlier,
        outlier_in=measure,
        slices=tuple(Slice(plane=one.plane, grey=one.grey, organ=one.organ) for one in scan.slices),
    )
