"""`panfm data check`: the verdict on every scan of a site's table, or on single files, in words, as CSV and as a page."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError, ScanError

if TYPE_CHECKING:
    from panfm.data.check import CheckReport, ScanCheck


def check(
    paths: Annotated[
        list[Path],
        typer.Argument(help="The folder with scans.csv; or single scans (a DICOM series is a folder without one)."),
    ],
    recipe: Annotated[
        str, typer.Option(help="Whose organs: a recipe that comes with panfm, or a study's own .yaml file.")
    ] = "real",
    out: Annotated[
        Path | None, typer.Option(help="Folder of check.csv and check.html; the table's if not given.")
    ] = None,
    label_map: Annotated[bool, typer.Option("--label-map", help="The single files are label maps, not scans.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes, each with one scan at a time; 0: one a core.")] = 0,
) -> None:
    """Say of each scan: fine, usable with a stated repair, or refused.

    Ends with exit code 0 when no scan is refused, and with 8, the code of a scan that cannot be used, when one is.
    """
    tables = [path for path in paths if (path / "scans.csv").is_file()]
    if not tables:
        refused = _check_files(paths, label_map)
    elif len(paths) == 1:
        refused = _check_table(paths[0], recipe, out or paths[0], workers)
    else:
        raise ConfigError(f"one folder with scans.csv at a time, got {len(paths)} paths; run the command once for each")
    if refused:
        raise typer.Exit(ScanError.exit_code)


def _check_table(folder: Path, recipe: str, out: Path, workers: int) -> bool:
    from panfm.cli.data_progress import scan_progress
    from panfm.data.check import check_table
    from panfm.data.processes import usable_cores
    from panfm.recipes import read_recipe
    from panfm.site.check_report import write_check_report

    organs = tuple(read_recipe(recipe).organs)
    with scan_progress("checking scans") as on_scan:
        report = check_table(folder, organs, workers=workers or usable_cores(), on_scan=on_scan)
    table, page = write_check_report(out, report, folder / "labels.csv")
    _print_findings(report.scans)
    _print_summary(report)
    print(f"written: {table} and {page} (the page shows scans: it stays here)")
    return bool(report.refused)


def _check_files(paths: list[Path], label_map: bool) -> bool:
    from panfm.data.check import Verdict, check_file

    scans = [check_file(path, label_map=label_map) for path in paths]
    _print_findings(scans)
    for scan in scans:
        if scan.verdict is Verdict.fine and scan.facts is not None:
            print(f"{scan.file}: fine, {' x '.join(map(str, scan.facts.shape))} voxels, {scan.facts.axes}")
    return any(scan.verdict is Verdict.refused for scan in scans)


def _print_findings(scans: list[ScanCheck] | tuple[ScanCheck, ...]) -> None:
    """One line per finding; refusals last, for the end is what a person sees."""
    for severity in ("repaired", "refused"):
        for scan in scans:
            who = " / ".join(filter(None, (scan.subject, scan.visit, scan.organ)))
            for finding in scan.findings:
                if finding.severity.value == severity:
                    print(f"{severity} [{finding.code}]: {who or scan.file}: {finding.message}")


def _print_summary(report: CheckReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from panfm.data.check import Verdict
    from panfm.data.overview import OUTLIER, grid_ranges, organ_sets, outliers, subjects_with

    scores = outliers(report)
    table = Table(title="Scans by organ")
    for name in ("organ", "subjects", "fine", "repaired", "refused", "odd", "spacing, mm", "voxels"):
        table.add_column(name, justify="left" if name == "organ" else "right")
    for organ in report.organs:
        verdicts = [scan.verdict for scan in report.scans if scan.organ == organ]
        standing = sum(
            score > OUTLIER for scan, (score, _) in zip(report.scans, scores, strict=True) if scan.organ == organ
        )
        if verdicts:
            counts = [str(verdicts.count(verdict)) for verdict in Verdict]
            table.add_row(organ, str(subjects_with(report, organ)), *counts, str(standing), *grid_ranges(report, organ))
    console = Console()
    console.print(table)
    sets = Table(title="Subjects by the organs they have")
    sets.add_column("subjects", justify="right")
    sets.add_column("organs")
    for organs, num in organ_sets(report).items():
        sets.add_row(f"{num:,}", ", ".join(organs) or "none")
    console.print(sets)
