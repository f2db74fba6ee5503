"""A hospital's own report: what it prepared, what it refused and why, what it answered, and what the model saw.

It is the only page with pictures of scans, so it is written into the hospital's own folder and sent nowhere. The
study's report may link to it, in a rehearsal, where all hospitals are folders of one machine.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from panfm.errors import DataError
from panfm.reporting.page import write_page
from panfm.reporting.slices import OrganPicture, View, views
from panfm.reporting.tables import DASH, Cell, Row, Table, count, number

_MOST_SUBJECTS = 4
"""Pictured subjects per organ: enough to see a wrong crop or a flipped axis, few enough to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedOrgan:
    """What the site's prepared store holds of one organ."""

    organ: str
    num_subjects: int
    num_scans: int
    shape: tuple[int, int, int]
    """Voxels that the model sees, XYZ."""
    spacing_mm: tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedScan:
    """A scan that was not prepared, and why."""

    subject: str
    visit: str
    organ: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRound:
    """What the site answered in one round, as it remembers it."""

    round: int
    answer: str
    """update, refusal or error."""
    loss: float | None = None
    collapse_loss: float | None = None
    """What the best constant answer would have; beside it the loss can be judged."""
    seconds: float | None = None
    reason: str = ""
    """Empty for an update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissedScan:
    """A prepared scan that a round, or this report, had to do without."""

    when: str
    """round 3, this report."""
    subject: str
    visit: str
    organ: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSummary:
    """What the report says in words and numbers."""

    run: str = ""
    panfm_version: str = ""
    prepared: Sequence[PreparedOrgan] = field(default_factory=tuple)
    refused: Sequence[RefusedScan] = field(default_factory=tuple)
    missed: Sequence[MissedScan] = field(default_factory=tuple)
    rounds: Sequence[AnsweredRound] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturedSubject:
    """One row of pictures on the page."""

    subject: str
    organ_masked: bool
    masked_share: float
    """Share of the organ's patches that were masked (0 to 1)."""
    views: list[View]


def write_site_report(folder: Path, site: str, pictures: Sequence[OrganPicture], summary: SiteSummary) -> Path:
    """Write `site_report.html` into the hospital's folder and return where it lies.

    Args:
        folder: the hospital's own folder; the page holds pictures of its patients' scans.
        pictures: of each organ the first four are shown, organs in the order in which they first come.
        summary: what was prepared, refused and answered.
    """
    values = {
        "site": site,
        "summary": summary,
        "organs": _by_organ(pictures),
        "prepared": prepared_table(summary.prepared),
        "refused": refused_table(summary.refused),
        "missed": missed_table(summary.missed),
        "rounds": rounds_table(summary.rounds),
    }
    return write_page(folder / "site_report.html", "site_report.html", values)


def read_refused(path: Path) -> tuple[RefusedScan, ...]:
    """The scans that a store refused, from its `refused.csv`; none where there is no such file.

    Raises: DataError when the table lacks one of its columns.
    """
    if not path.is_file():
        return ()
    names = ("subject", "visit", "organ", "code", "reason")
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = [name for name in names if name not in (rows.fieldnames or ())]
        if missing:
            raise DataError(f"{path.name} lacks the column {', '.join(missing)}; prepare the store again")
        return tuple(RefusedScan(**{name: row[name] or "" for name in names}) for row in rows)


def prepared_table(prepared: Sequence[PreparedOrgan]) -> Table:
    """Subjects, scans and grid of each organ."""
    return Table(
        caption="What the prepared store holds. Grid: voxels that the model sees, and how far apart they are.",
        head=("organ", "subjects", "scans", "voxels, right by front by head", "spacing, mm"),
        rows=tuple(
            Row(
                header=Cell(text=organ.organ),
                cells=(
                    Cell(text=count(organ.num_subjects)),
                    Cell(text=count(organ.num_scans)),
                    Cell(text=" × ".join(str(side) for side in organ.shape)),
                    Cell(text=" × ".join(f"{side:g}" for side in organ.spacing_mm)),
                ),
            )
            for organ in prepared
        ),
    )


def refused_table(refused: Sequence[RefusedScan]) -> Table:
    """Scans that take no part, with the reason."""
    return Table(
        caption="Scans that were not prepared and take no part, with the reason.",
        head=("subject", "visit", "organ", "code", "reason"),
        rows=tuple(
            Row(
                header=Cell(text=scan.subject),
                cells=tuple(Cell(text=text or DASH) for text in (scan.visit, scan.organ, scan.code, scan.reason)),
            )
            for scan in refused
        ),
        words=True,
    )


def missed_table(missed: Sequence[MissedScan]) -> Table:
    """Prepared scans that training did without, with the reason."""
    return Table(
        caption="Prepared scans that were missing or had changed when they were to be read, and were done without.",
        head=("subject", "visit", "organ", "when", "reason"),
        rows=tuple(
            Row(
                header=Cell(text=scan.subject),
                cells=tuple(Cell(text=text or DASH) for text in (scan.visit, scan.organ, scan.when, scan.reason)),
            )
            for scan in missed
        ),
        words=True,
    )


def rounds_table(rounds: Sequence[AnsweredRound]) -> Table:
    """What the site answered, round by round."""
    return Table(
        caption="What this site answered, round by round.",
        head=("round", "answer", "loss", "best constant answer", "seconds", "reason"),
        rows=tuple(
            Row(
                header=Cell(text=str(answered.round)),
                cells=(
                    Cell(text=answered.answer),
                    *(Cell(text=number(v)) for v in (answered.loss, answered.collapse_loss, answered.seconds)),
                    Cell(text=answered.reason or DASH),
                ),
            )
            for answered in rounds
        ),
        words=True,
    )


def _by_organ(pictures: Sequence[OrganPicture]) -> dict[str, list[PicturedSubject]]:
    organs: dict[str, list[PicturedSubject]] = {}
    for picture in pictures:
        rows = organs.setdefault(picture.organ, [])
        if len(rows) < _MOST_SUBJECTS:
            rows.append(
                PicturedSubject(
                    subject=picture.subject,
                    organ_masked=picture.organ_masked,
                    masked_share=float(picture.masked_patches.mean()),
                    views=views(picture),
                )
            )
    return organs
