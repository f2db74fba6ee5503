"""What a site offers: one table of scans, one of labels, both plain CSV that a person can open and correct.

`scans.csv` has the columns `subject,visit,organ,path,volume,label_map,label_ids,box,window,split`; all but subject, organ
and path may be empty. Subjects and visits are pseudonyms that the site chose; they become file names of the prepared
store, so they are limited to letters, digits, dot, underscore and hyphen. `labels.csv` has subject, visit and one column
per label; an empty cell is an unknown value.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panfm.data.dicom_files import holds_series
from panfm.errors import DataError

COLUMNS = ("subject", "visit", "organ", "path", "volume", "label_map", "label_ids", "box", "window", "split")
"""Columns of `scans.csv`, in the order in which they are written."""

REQUIRED_COLUMNS = ("subject", "organ", "path")
"""Columns of `scans.csv` that must be there, and filled in every row."""

VoxelBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open voxel ranges in the file's own axis order."""

_PSEUDONYM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRow:
    """One scan of one organ of one subject at one visit, and how the organ is found in it."""

    subject: str
    organ: str
    path: Path
    """A NIfTI file, or the folder of a DICOM series."""
    visit: str = ""
    volume: int | None = None
    """Which volume of a 4D file, counted from 0; None: the file holds one."""
    label_map: tuple[Path, ...] = ()
    """Label maps whose union says where the organ is, for example left and right kidney."""
    label_ids: tuple[int, ...] = ()
    """Labels that are the organ; empty: every non-zero voxel."""
    box: VoxelBox | None = None
    """Where the organ is, when there is no label map."""
    window: tuple[float, float] | None = None
    """Intensities outside this range count as background (fat on CT: -190 to -30 HU)."""
    split: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTable:
    """Labels for downstream tasks; row i belongs to subjects[i] at visits[i]."""

    names: tuple[str, ...]
    subjects: tuple[str, ...]
    visits: tuple[str, ...]
    values: NDArray[np.float64]
    """Shape (rows, labels); NaN where unknown."""


def read_scan_table(path: Path, organs: Sequence[str]) -> tuple[ScanRow, ...]:
    """The rows of a site's `scans.csv`, in the table's order, paths made absolute.

    Args:
        path: the table; relative paths in it start at its folder.
        organs: the study's vocabulary.
    Raises: DataError for a missing or empty table, a missing column or file, an unknown organ, a cell that cannot be
        read, or two scans for the same subject, visit and organ.
    """
    rows = tuple(
        _scan_row(cells, path.parent, f"{path.name} line {line}", organs)
        for line, cells in _read_cells(path, REQUIRED_COLUMNS)
    )
    _refuse_repeats(path.name, [(row.subject, row.visit, row.organ) for row in rows])
    return rows


def write_scan_table(path: Path, rows: Iterable[ScanRow]) -> None:
    """Write `scans.csv`; files below the table's folder are named relative to it, others by their absolute path.

    Links are kept as they are: datasets under version control link to stores whose paths change.
    """
    folder = Path(os.path.abspath(path.parent))  # noqa: PTH100 (pathlib's absolute() keeps "..")
    _write_cells(path, COLUMNS, [_scan_cells(row, folder) for row in rows])


def read_labels(path: Path) -> LabelTable:
    """The labels of a site's `labels.csv`, in the table's order.

    Raises: DataError for a missing or empty table, a missing subject column, a value that is no number, or a repeated
        subject and visit.
    """
    lines = _read_cells(path, ("subject",))
    names = tuple(name for name in lines[0][1] if name not in ("subject", "visit"))
    keys = [(_pseudonym(cells["subject"], f"{path.name} line {line}"), cells.get("visit", "")) for line, cells in lines]
    _refuse_repeats(path.name, keys)
    values = [[_number(cells[name], f"{path.name} line {line}: {name}") for name in names] for line, cells in lines]
    return LabelTable(
        names=names,
        subjects=tuple(subject for subject, _ in keys),
        visits=tuple(visit for _, visit in keys),
        values=np.array(values, dtype=np.float64).reshape(len(keys), len(names)),
    )


def write_labels(path: Path, table: LabelTable) -> None:
    """Write `labels.csv`; NaN becomes an empty cell."""
    cells = [
        [subject, visit, *("" if math.isnan(value) else repr(float(value)) for value in values)]
        for subject, visit, values in zip(table.subjects, table.visits, table.values, strict=True)
    ]
    _write_cells(path, ("subject", "visit", *table.names), cells)


def _read_cells(path: Path, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and stripped cells of a CSV table with at least one row."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            lines = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k in header}) for row in reader]
    except OSError as error:
        raise DataError(f"{path} should be a CSV table, but: {error.strerror}; write it or correct the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} is not a readable CSV table ({error}); save it as UTF-8 CSV") from error
    missing = [name for name in required if name not in header]
    if missing:
        raise DataError(f"{path.name} lacks column {', '.join(missing)}; it has {', '.join(header) or 'none'}; add it")
    if not lines:
        raise DataError(f"{path.name} has no rows; list at least one scan or subject")
    return lines


def _write_cells(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    temporary.replace(path)


def _scan_row(cells: dict[str, str], folder: Path, where: str, organs: Sequence[str]) -> ScanRow:
    empty = [name for name in REQUIRED_COLUMNS if not cells[name]]
    if empty:
        raise DataError(f"{where}: {', '.join(empty)} must not be empty; fill it in or remove the row")
    if cells["organ"] not in organs:
        raise DataError(
            f"{where}: unknown organ {cells['organ']!r}: this study knows {', '.join(organs)}; correct or remove it"
        )
    visit = cells.get("visit", "")
    return ScanRow(
        subject=_pseudonym(cells["subject"], where),
        visit=_pseudonym(visit, where) if visit else "",
        organ=cells["organ"],
        path=existing_scan(cells["path"], folder, where),
        volume=parse_volume(cells.get("volume", ""), where),
        label_map=parse_label_map(cells.get("label_map", ""), folder, where),
        label_ids=parse_label_ids(cells.get("label_ids", ""), where),
        box=parse_box(cells.get("box", ""), where),
        window=parse_window(cells.get("window", ""), where),
        split=cells.get("split", ""),
    )


def _scan_cells(row: ScanRow, folder: Path) -> list[str]:
    return [
        row.subject,
        row.visit,
        row.organ,
        _as_written(row.path, folder),
        "" if row.volume is None else str(row.volume),
        ";".join(_as_written(path, folder) for path in row.label_map),
        " ".join(str(label) for label in row.label_ids),
        " ".join(f"{low}:{high}" for low, high in row.box) if row.box else "",
        " ".join(f"{value:g}" for value in row.window) if row.window else "",
        row.split,
    ]


def _as_written(path: Path, folder: Path) -> str:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else absolute.as_posix()


def _pseudonym(text: str, where: str) -> str:
    if not _PSEUDONYM.fullmatch(text):
        raise DataError(
            f"{where}: subject and visit should be letters, digits, '.', '_' or '-', got {text!r}; rename it"
        )
    return text


def existing_scan(text: str, folder: Path, where: str) -> Path:
    """The path in a cell, from the table's folder. Raises: DataError when no file and no DICOM series lies there."""
    path = (folder / text).absolute()
    if not path.is_file() and not holds_series(path):
        raise DataError(f"{where}: no file and no DICOM series {path}; correct the path or remove the row")
    return path


def parse_label_map(text: str, folder: Path, where: str) -> tuple[Path, ...]:
    """Label maps in a cell, separated by `;`. Raises: DataError when one is missing."""
    paths = tuple((folder / part.strip()).absolute() for part in text.split(";") if part.strip())
    for path in paths:
        if not path.is_file():
            raise DataError(f"{where}: no file {path}; correct the path or remove the row")
    return paths


def parse_volume(text: str, where: str) -> int | None:
    """Which volume of a 4D file. Raises: DataError when the cell is neither empty nor a whole number from 0."""
    if text and not re.fullmatch(r"\d{1,6}", text):
        raise DataError(f"{where}: volume should be a whole number counted from 0, got {text!r}; correct it")
    return int(text) if text else None


def parse_label_ids(text: str, where: str) -> tuple[int, ...]:
    """Labels in a cell. Raises: DataError when they are not whole numbers."""
    try:
        return tuple(int(part) for part in text.split())
    except ValueError as error:
        raise DataError(
            f"{where}: label_ids should be whole numbers such as '2 3', got {text!r}; correct it"
        ) from error


def parse_box(text: str, where: str) -> VoxelBox | None:
    """A box in a cell, None for an empty one. Raises: DataError when it is not three rising ranges."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)\s+(\d+):(\d+)\s+(\d+):(\d+)", text)
    x0, x1, y0, y1, z0, z1 = map(int, match.groups()) if match else (0,) * 6
    if not (x0 < x1 and y0 < y1 and z0 < z1):
        raise DataError(f"{where}: box should be rising voxel ranges 'x0:x1 y0:y1 z0:z1', got {text!r}; correct it")
    return ((x0, x1), (y0, y1), (z0, z1))


def parse_window(text: str, where: str) -> tuple[float, float] | None:
    """A window in a cell, None for an empty one. Raises: DataError when it is not two rising numbers."""
    if not text:
        return None
    values = [_number(part, f"{where}: window") for part in text.split()]
    if len(values) != 2 or not values[0] < values[1]:
        raise DataError(f"{where}: window should be two rising intensities 'lo hi', got {text!r}; correct it")
    return (values[0], values[1])


def _number(text: str, where: str) -> float:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise DataError(f"{where} should be a number, got {text!r}; correct it or leave the cell empty")
    return value


def _refuse_repeats(name: str, keys: Sequence[tuple[str, ...]]) -> None:
    seen: set[tuple[str, ...]] = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{name} lists {' / '.join(filter(None, key))} twice; keep one row, or tell visits apart")
        seen.add(key)
