"""The page on which a site sees its own scans before any study: what is wrong, what stands out, what is missing in whom.

It shows slices of patients, so it is written beside the site's own table and sent nowhere.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray
from scipy import ndimage

from panfm.reporting.page import write_page
from panfm.reporting.tables import DASH, Cell, Row, Table, count, number

_MOST_ROWS = 400
"""Lines of the verdict table; a person reads no more, and `check.csv` has them all."""
_MOST_PICTURES = 18
"""Pictured scans per organ, the most unusual first: three rows of a page."""
_OUTLINE = (255, 176, 0)
"""Amber: seen on black and on white alike, which the organs' own colours, made for paper, are not."""
_COMMON_GRIDS = 4
"""Grids listed per organ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One plane of a scan, rows and columns of the page."""

    plane: str
    grey: NDArray[np.uint8]
    organ: NDArray[np.bool_]
    """Where the organ is drawn, the same shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedScan:
    """One scan with its verdict."""

    subject: str
    visit: str
    organ: str
    file: str
    verdict: str
    """fine, repaired or refused."""
    codes: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    """Empty for a refused scan, as are the following."""
    spacing_mm: tuple[float, ...] = ()
    organ_ml: float | None = None
    outlier: float = 0.0
    """Largest robust z-score within the organ."""
    outlier_in: str = ""
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceRow:
    """Some subjects, and how many of them have each organ."""

    name: str
    num_subjects: int
    having: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Everything the page says."""

    panfm_version: str
    organs: tuple[str, ...]
    """The study's vocabulary, in its order."""
    scans: tuple[CheckedScan, ...]
    organ_sets: Mapping[tuple[str, ...], int]
    """Subjects by the organs they have."""
    missingness: tuple[PresenceRow, ...]
    """A first row of all subjects, then by site, sex and age where known."""
    outlier_from: float
    """Robust z-score from which on a scan stands out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One scan of the montage."""

    name: str
    note: str
    """What stands out; empty for an ordinary scan."""
    planes: tuple[tuple[str, str], ...]
    """Name of the plane and its PNG, base64."""


def write_data_report(path: Path, summary: DataSummary) -> Path:
    """Write the page; it holds pictures of patients' scans and belongs into the site's own folder."""
    held = [organ for organ in summary.organs if any(scan.organ == organ for scan in summary.scans)]
    values = {
        "summary": summary,
        "num": {verdict: _num(summary.scans, verdict) for verdict in ("fine", "repaired", "refused")},
        "num_outliers": sum(scan.outlier > summary.outlier_from for scan in summary.scans),
        "num_subjects": sum(summary.organ_sets.values()),
        "verdicts": verdict_table(summary.scans, summary.outlier_from),
        "by_organ": organ_table(summary.scans, held),
        "grids": grid_table(summary.scans, held),
        "organ_sets": organ_set_table(summary.organ_sets, held),
        "missingness": missingness_table(summary.missingness, held),
        "montage": {organ: pictures(summary, organ) for organ in held},
    }
    return write_page(path, "data_report.html", values)


def verdict_table(scans: Sequence[CheckedScan], outlier_from: float) -> Table:
    """Refused scans, then outliers, then repaired ones; within each the most unusual first. Fine ones are left out."""
    telling = [scan for scan in scans if scan.verdict != "fine" or scan.outlier > outlier_from]
    shown = sorted(telling, key=lambda scan: _rank(scan, outlier_from))[:_MOST_ROWS]
    rest = len(telling) - len(shown)
    return Table(
        caption="Scans that are refused, stand out among those of their organ, or were repaired"
        + (f"; {rest:,} more are in check.csv." if rest else "."),
        head=("subject", "organ", "verdict", "stands out in", "code", "what and what to do"),
        rows=tuple(
            Row(
                header=Cell(text=_name(scan)),
                cells=(
                    Cell(text=scan.organ or DASH),
                    Cell(text=scan.verdict, strong=scan.verdict == "refused"),
                    Cell(text=_outlier(scan, outlier_from) or DASH),
                    Cell(text=", ".join(scan.codes) or DASH),
                    Cell(text="; ".join(scan.messages) or DASH),
                ),
            )
            for scan in shown
        ),
        words=True,
    )


def organ_table(scans: Sequence[CheckedScan], organs: Sequence[str]) -> Table:
    """Counts of verdicts, and the volume of each organ."""
    return Table(
        caption="Verdicts and organ volumes (5th percentile, median, 95th). Volume: voxels of the organ where a label map "
        "or a box says so, else of all tissue.",
        head=("organ", "scans", "fine", "repaired", "refused", "volume, ml"),
        rows=tuple(_organ_row(organ, [scan for scan in scans if scan.organ == organ]) for organ in organs),
    )


def grid_table(scans: Sequence[CheckedScan], organs: Sequence[str]) -> Table:
    """The most frequent grids of each organ."""
    rows = []
    for organ in organs:
        grids = [(scan.shape, scan.spacing_mm) for scan in scans if scan.organ == organ and scan.shape]
        spacings = [tuple(round(step, 2) for step in spacing) for _, spacing in grids]
        for spacing in sorted(set(spacings), key=lambda s: (-spacings.count(s), s))[:_COMMON_GRIDS]:
            shapes = [shape for (shape, _), own in zip(grids, spacings, strict=True) if own == spacing]
            rows.append(_grid_row(organ, spacing, shapes))
    return Table(
        caption=f"The {_COMMON_GRIDS} most frequent spacings of each organ, along the axes of the file.",
        head=("organ", "spacing, mm", "scans", "fewest voxels", "most voxels"),
        rows=tuple(rows),
    )


def organ_set_table(organ_sets: Mapping[tuple[str, ...], int], organs: Sequence[str]) -> Table:
    """Which organs come together, and in how many subjects."""
    rows = [
        Row(
            header=Cell(text=f"{num:,}"),
            cells=tuple(
                Cell(text="●" if organ in held else "·", shade=0.5 if organ in held else None) for organ in organs
            ),
        )
        for held, num in organ_sets.items()
    ]
    totals = [sum(num for held, num in organ_sets.items() if organ in held) for organ in organs]
    total = Row(header=Cell(text="have it"), cells=tuple(Cell(text=count(num)) for num in totals), total=True)
    return Table(
        caption="Subjects by the organs they have (usable scans, any visit).",
        head=("subjects", *organs),
        rows=(*rows, total) if rows else (),
    )


def missingness_table(groups: Sequence[PresenceRow], organs: Sequence[str]) -> Table:
    """Share of each group's subjects who have each organ."""
    return Table(
        caption="Share of subjects who have an organ, by what labels.csv knows of site, sex and age.",
        head=("group", "subjects", *organs),
        rows=tuple(
            Row(
                header=Cell(text=group.name),
                cells=(
                    Cell(text=count(group.num_subjects)),
                    *(_share(group.having[organ], group.num_subjects) for organ in organs),
                ),
            )
            for group in groups
        ),
    )


def pictures(summary: DataSummary, organ: str) -> list[Picture]:
    """The montage of one organ, the most unusual scans first."""
    scans = sorted(
        (scan for scan in summary.scans if scan.organ == organ and scan.slices), key=lambda scan: -scan.outlier
    )
    return [
        Picture(
            name=_name(scan),
            note=_outlier(scan, summary.outlier_from),
            planes=tuple((one.plane, _png(one)) for one in scan.slices),
        )
        for scan in scans[:_MOST_PICTURES]
    ]


def _num(scans: Sequence[CheckedScan], verdict: str) -> int:
    return sum(scan.verdict == verdict for scan in scans)


def _name(scan: CheckedScan) -> str:
    return " / ".join(filter(None, (scan.subject, scan.visit))) or scan.file


def _rank(scan: CheckedScan, outlier_from: float) -> tuple[int, float, str]:
    if scan.verdict == "refused":
        return 0, 0.0, _name(scan)
    return 1 if scan.outlier > outlier_from else 2, -scan.outlier, _name(scan)


def _outlier(scan: CheckedScan, outlier_from: float) -> str:
    return f"{scan.outlier_in} (z {number(scan.outlier, 2)})" if scan.outlier > outlier_from else ""


def _organ_row(organ: str, scans: Sequence[CheckedScan]) -> Row:
    volumes = [scan.organ_ml for scan in scans if scan.organ_ml is not None]
    percentiles = np.percentile(volumes, (5, 50, 95)) if volumes else ()
    return Row(
        header=Cell(text=organ),
        cells=(
            Cell(text=count(len(scans))),
            *(Cell(text=count(_num(scans, verdict))) for verdict in ("fine", "repaired", "refused")),
            Cell(text=" · ".join(number(float(volume)) for volume in percentiles) or DASH),
        ),
    )


def _grid_row(organ: str, spacing: Sequence[float], shapes: Sequence[Sequence[int]]) -> Row:
    low, high = (tuple(edge(sides) for sides in zip(*shapes, strict=True)) for edge in (min, max))
    return Row(
        header=Cell(text=organ),
        cells=(
            Cell(text=" × ".join(f"{step:g}" for step in spacing)),
            Cell(text=count(len(shapes))),
            Cell(text=" × ".join(map(str, low))),
            Cell(text=" × ".join(map(str, high))),
        ),
    )


def _share(having: int, num_subjects: int) -> Cell:
    share = having / num_subjects if num_subjects else 0.0
    return Cell(text=f"{100 * share:.0f} %", shade=share)


def _png(one: Slice) -> str:
    """Grey values with the organ's outline."""
    pixels = np.repeat(one.grey[:, :, None], 3, axis=2)
    edge = one.organ & ~ndimage.binary_erosion(one.organ, border_value=1)
    pixels[edge] = _OUTLINE
    with io.BytesIO() as file:
        imsave(file, np.ascontiguousarray(pixels), format="png", metadata={"Software": "panfm"})
        return base64.b64encode(file.getvalue()).decode("ascii")
