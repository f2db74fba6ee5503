"""A table that a site has already, with its own headers: CSV with commas, semicolons or tabs, one line per scan.

Columns are found by the names of `scans.csv`, or by the site's mapping (`subject=PatientKey`). A line that cannot be used is
skipped with its number and the reason; other columns are not looked at.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from panfm.data.index.found import Found, FoundScan, LabelList, LabelMap, Skipped
from panfm.data.index.organ_rules import OrganRules
from panfm.data.index.pseudonym import SPLITS
from panfm.data.index.site_tree import Entry
from panfm.data.manifest import (
    COLUMNS,
    existing_scan,
    parse_box,
    parse_label_ids,
    parse_label_map,
    parse_volume,
    parse_window,
)
from panfm.errors import ConfigError, DataError

PEOPLE_COLUMNS = ("age", "sex")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table, by the names that panfm has for its columns."""

    number: int
    cells: Mapping[str, str]

    def cell(self, column: str) -> str:
        """A stripped cell; empty where there is no such column."""
        return self.cells.get(column, "")


def read_lines(path: Path, columns: Mapping[str, str], required: tuple[str, ...]) -> tuple[Line, ...]:
    """The lines of a site's table.

    Args:
        path: a CSV file, UTF-8, separated by whatever its header has most of.
        columns: panfm's name -> the site's header; a name that is not mapped stands for itself.
        required: columns that must be there.
    Raises: DataError when the table cannot be read; ConfigError when the mapping names what is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8; save it as 'CSV UTF-8'") from error
    first = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    headers = [header.strip() for header in reader.fieldnames or ()]
    reader.fieldnames = headers
    _check_columns(path.name, columns, required, headers)
    return tuple(_lines(reader, columns, headers, path.name))


def _check_columns(name: str, columns: Mapping[str, str], required: tuple[str, ...], headers: list[str]) -> None:
    known = (*COLUMNS, *PEOPLE_COLUMNS)
    if unknown := sorted(set(columns) - set(known)):
        raise ConfigError(f"--column {unknown[0]}=...: there are {', '.join(known)}; correct it")
    missing = [column for column in required if columns.get(column, column) not in headers]
    missing += [column for column, header in columns.items() if header not in headers and column not in missing]
    if missing:
        raise ConfigError(
            f"{name} lacks a column for {', '.join(missing)}; it has {', '.join(headers) or 'none'}; "
            f"say --column {missing[0]}=HEADER"
        )


def _lines(reader: csv.DictReader[str], columns: Mapping[str, str], headers: list[str], name: str) -> Iterator[Line]:
    wanted = {column: columns.get(column, column) for column in (*COLUMNS, *PEOPLE_COLUMNS)}
    present = {column: header for column, header in wanted.items() if header in headers}
    try:
        for row in reader:
            yield Line(reader.line_num, {column: (row[header] or "").strip() for column, header in present.items()})
    except csv.Error as error:
        raise DataError(f"{name} line {reader.line_num} is no CSV ({error}); save the table again") from error


def scans_in_table(path: Path, lines: tuple[Line, ...], organ_rules: OrganRules, labels: LabelList | None) -> Found:
    """The scans of a site's table; paths start at its folder.

    Args:
        path: the table.
        lines: its lines.
        organ_rules: which organ a scan shows, where the organ's cell is empty or another word.
        labels: what the numbers in label maps mean, for lines without organ; their organs are then looked for.
    """
    scans: list[FoundScan] = []
    skipped: list[Skipped] = []
    for line in lines:
        answer = _scan(path, line, organ_rules, labels)
        if isinstance(answer, Skipped):
            skipped.append(answer)
        else:
            scans.append(answer)
    return Found(tuple(scans), tuple(skipped))


def _scan(path: Path, line: Line, organ_rules: OrganRules, labels: LabelList | None) -> FoundScan | Skipped:
    where = f"{path.name} line {line.number}"
    if not line.cell("subject") or not line.cell("path"):
        return Skipped(where, "empty_cell", "subject and path must not be empty; fill them in")
    if column := _unreadable_column(path.parent, line, where):
        reason = f"its {column} cannot be read, or names a file that is not there; correct the line"
        return Skipped(where, "cell", reason)
    scan = _parsed(path.parent, line, where, labels)
    entry = Entry(scan.path, line.cell("path"))
    organ = organ_rules.organ(entry, line.cell("organ"), from_map=labels is not None and bool(scan.label_maps))
    if isinstance(organ, Skipped):
        return Skipped(where, organ.code, organ.reason)
    return replace(scan, organ=organ)


def _unreadable_column(folder: Path, line: Line, where: str) -> str:
    """The first column whose cell is not what it should be; the cell's text, which may be anything, is not repeated."""
    parsers: dict[str, Callable[[str], object]] = {
        "path": lambda text: existing_scan(text, folder, where),
        "label_map": lambda text: parse_label_map(text, folder, where),
        "label_ids": lambda text: parse_label_ids(text, where),
        "box": lambda text: parse_box(text, where),
        "window": lambda text: parse_window(text, where),
        "volume": lambda text: parse_volume(text, where),
    }
    for column, parse in parsers.items():
        try:
            parse(line.cell(column))
        except DataError:
            return column
    return "" if line.cell("split") in ("", *SPLITS) else "split"


def _parsed(folder: Path, line: Line, where: str, labels: LabelList | None) -> FoundScan:
    ids = parse_label_ids(line.cell("label_ids"), where)
    maps = parse_label_map(line.cell("label_map"), folder, where)
    return FoundScan(
        person=line.cell("subject"),
        visit=line.cell("visit"),
        path=existing_scan(line.cell("path"), folder, where),
        label_maps=tuple(LabelMap(one, None if ids else labels) for one in maps),
        label_ids=ids,
        box=parse_box(line.cell("box"), where),
        window=parse_window(line.cell("window"), where),
        volume=parse_volume(line.cell("volume"), where),
        split=line.cell("split"),
    )
