"""The verdict on every scan of a site, before any study: fine, usable with a stated repair, or refused.

A scan is read, and its organ located, exactly as preparing does, so that what passes here can be prepared. One scan is in
memory at a time; what stays of it are its findings, a few facts, and two slices a thumb wide.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

import numpy as np

from panfm.data.geometry import Region, bounding_box
from panfm.data.locate import locate
from panfm.data.manifest import ScanRow, read_scan_table
from panfm.data.mid_slice import MidSlice, mid_slices
from panfm.data.processes import over_processes
from panfm.data.quality import Finding, Findings, Severity, axis_codes, kept, organ_findings
from panfm.data.reading import read_label_map, read_scan
from panfm.data.scan import Scan
from panfm.data.store import write_csv
from panfm.errors import DataError, ScanError

INTENSITY_PERCENTILES = (5.0, 50.0, 95.0)

_NAMES = ("subject", "visit", "organ", "file", "verdict", "codes", "what", "shape", "spacing_mm", "axes", "organ_ml")
_COLUMNS = (*_NAMES, *(f"intensity_p{percent:g}" for percent in INTENSITY_PERCENTILES), "outlier", "outlier_in")


class Verdict(Enum):
    """What a site may expect of a scan."""

    fine = "fine"
    repaired = "repaired"
    """Usable, with what was repaired said."""
    refused = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanFacts:
    """What is true of a scan that can be read."""

    shape: tuple[int, int, int]
    """Voxels along the file's own axes."""
    spacing_mm: tuple[float, float, float]
    axes: str
    """Where the file's axes grow to, for example LPS."""
    organ_ml: float
    """Volume of the organ's voxels; of all tissue where nothing says where the organ is."""
    intensities: tuple[float, float, float]
    """`INTENSITY_PERCENTILES` of the tissue in the organ."""
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanCheck:
    """One scan and its verdict."""

    subject: str
    visit: str
    organ: str
    file: str
    """The name that the site gave it."""
    findings: Findings = ()
    facts: ScanFacts | None = None
    """None for a scan that was refused."""
    slices: tuple[MidSlice, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst that was found."""
        if any(finding.severity is Severity.refused for finding in self.findings):
            return Verdict.refused
        return Verdict.repaired if self.findings else Verdict.fine


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The verdicts on a site's scans, in the order of its table."""

    organs: tuple[str, ...]
    """The vocabulary, in its order."""
    scans: tuple[ScanCheck, ...]

    @property
    def refused(self) -> tuple[ScanCheck, ...]:
        """Scans that cannot take part."""
        return tuple(scan for scan in self.scans if scan.verdict is Verdict.refused)


def check_table(
    folder: Path,
    organs: Sequence[str],
    *,
    workers: int = 1,
    on_scan: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Check every scan of a site's `scans.csv`; whatever is wrong with a scan is a verdict.

    Args:
        folder: folder of the table.
        organs: the study's vocabulary.
        workers: processes; the report does not depend on it.
        on_scan: called after each scan with (scans done, scans in all).
    Raises: DataError when the table itself is wrong.
    """
    rows = read_scan_table(folder / "scans.csv", organs)
    checks: dict[int, ScanCheck] = {}
    for place, check in over_processes(_check_numbered, list(enumerate(rows)), workers):
        checks[place] = check
        if on_scan is not None:
            on_scan(len(checks), len(rows))
    scans = [checks[place] for place in range(len(rows))]
    return CheckReport(organs=tuple(organs), scans=_with_duplicates(scans))


def check_scan(row: ScanRow) -> ScanCheck:
    """Read one scan, find its organ, and say what was found."""
    check = ScanCheck(subject=row.subject, visit=row.visit, organ=row.organ, file=row.path.name)
    try:
        scan = read_scan(row.path, row.volume)
        located = locate(row, scan)
    except DataError as error:
        return replace(check, findings=(_refusal(error),))
    drawn = located.organ if row.label_map or row.box else np.zeros_like(located.organ)
    return replace(
        check,
        findings=scan.repairs + located.repairs,
        facts=_facts(scan, located.organ, located.tissue),
        slices=mid_slices(scan, located.organ, drawn),
    )


def check_file(path: Path, volume: int | None = None, *, label_map: bool = False) -> ScanCheck:
    """The verdict on one file that no table names; a label map should show something."""
    check = ScanCheck(subject="", visit="", organ="", file=path.name)
    try:
        scan = read_label_map(path) if label_map else read_scan(path, volume)
        if label_map:
            kept(path.name, organ_findings("organ", int((scan.voxels != 0).sum())))
    except DataError as error:
        return replace(check, findings=(_refusal(error),))
    everything = np.ones(scan.voxels.shape, dtype=np.bool_)
    return replace(check, findings=scan.repairs, facts=_facts(scan, everything, everything))


def write_check_table(path: Path, report: CheckReport, outliers: Sequence[tuple[float, str]]) -> None:
    """Write one line per scan as CSV; `outliers`: how far each scan lies out, and in what."""
    write_csv(path, _COLUMNS, [_cells(scan, *outlier) for scan, outlier in zip(report.scans, outliers, strict=True)])


def _check_numbered(job: tuple[int, ScanRow]) -> tuple[int, ScanCheck]:
    place, row = job
    return place, check_scan(row)


def _refusal(error: DataError) -> Finding:
    if isinstance(error, ScanError):
        return Finding(error.code, str(error).removesuffix(f" [{error.code}]"))
    return Finding("unusable", str(error))


def _facts(scan: Scan, organ: Region, tissue: Region) -> ScanFacts:
    x, y, z = scan.voxels.shape
    box = bounding_box(organ)
    seen = scan.voxels[box][organ[box] & tissue[box]]
    low, middle, high = (
        float(v) for v in np.percentile(seen if seen.size else scan.voxels[box], INTENSITY_PERCENTILES)
    )
    voxel_mm3 = abs(float(np.linalg.det(scan.affine[:3, :3])))
    return ScanFacts(
        shape=(x, y, z),
        spacing_mm=scan.spacing_mm,
        axes=axis_codes(scan.affine),
        organ_ml=int(organ.sum()) * voxel_mm3 / 1000,
        intensities=(low, middle, high),
        digest=scan.digest,
    )


def _with_duplicates(scans: Sequence[ScanCheck]) -> tuple[ScanCheck, ...]:
    """The same file under two names would stand in training and test at once."""
    owners: dict[str, set[tuple[str, str]]] = {}
    for scan in scans:
        if scan.facts is not None:
            owners.setdefault(scan.facts.digest, set()).add((scan.subject, scan.visit))
    return tuple(_with_others(scan, owners.get(scan.facts.digest, set()) if scan.facts else set()) for scan in scans)


def _with_others(scan: ScanCheck, owners: set[tuple[str, str]]) -> ScanCheck:
    others = sorted(" / ".join(filter(None, owner)) for owner in owners - {(scan.subject, scan.visit)})
    if not others:
        return scan
    message = f"{scan.file}: the same file stands under {', '.join(others)}, too; keep one of them"
    return replace(scan, findings=(*scan.findings, Finding("duplicate", message, Severity.repaired)))


def _cells(scan: ScanCheck, outlier: float, measure: str) -> list[str]:
    named = [scan.subject, scan.visit, scan.organ, scan.file, scan.verdict.value]
    found = [" ".join(finding.code for finding in scan.findings), "; ".join(f.message for f in scan.findings)]
    return [*named, *found, *_fact_cells(scan.facts), f"{outlier:.2f}" if measure else "", measure]


def _fact_cells(facts: ScanFacts | None) -> list[str]:
    if facts is None:
        return [""] * (4 + len(INTENSITY_PERCENTILES))
    shape, spacing = " ".join(map(str, facts.shape)), " ".join(f"{step:.5g}" for step in facts.spacing_mm)
    return [shape, spacing, facts.axes, f"{facts.organ_ml:.4g}", *(f"{value:.6g}" for value in facts.intensities)]
