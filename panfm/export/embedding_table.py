"""Embeddings of everybody in a site's `scans.csv`, one row a subject and visit, as a table that any statistics program reads."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from panfm.data.manifest import ScanRow, read_scan_table
from panfm.durable import write_file
from panfm.errors import DataError
from panfm.export.frozen_model import FrozenModel, OrganScan, SubjectEmbedding

Refused = tuple[str, str, str, str]
"""Subject, visit, organ, and why its scan could not be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedTable:
    """What became of the scans of a table."""

    rows: pd.DataFrame
    """subject, visit, organs (those used, with + between), share_<organ> (attention; empty where the organ is absent), and e0 to
    e<3E - 1>, the subject's embedding."""
    refused: tuple[Refused, ...]
    """Scans that could not be used; their subjects stand in `rows` with the organs that are left, if any is."""


def embed_table(
    model: FrozenModel, folder: Path, on_subject: Callable[[int, int], None] | None = None
) -> EmbeddedTable:
    """Embed everybody in `folder/scans.csv`.

    Args:
        on_subject: called after each subject and visit with (done, in all).
    Raises: DataError when there is no table, it cannot be read, or no scan of it can be used.
    """
    by_visit = _by_visit(read_scan_table(folder / "scans.csv", model.organs))
    refused: list[Refused] = []
    rows: list[Mapping[str, object]] = []
    for done, ((subject, visit), scans) in enumerate(by_visit.items(), start=1):
        answer = _embedded(model, scans, refused)
        if answer is not None:
            rows.append(_row(subject, visit, answer, model.organs))
        if on_subject is not None:
            on_subject(done, len(by_visit))
    if not rows:
        raise DataError(f"no scan of {folder / 'scans.csv'} can be used; the first: {refused[0][3]}")
    return EmbeddedTable(rows=pd.DataFrame(rows), refused=tuple(refused))


def make_place(path: Path) -> None:
    """The folder in which a table will be written, made before the hours that the table takes.

    Raises: DataError when there can be no file of that name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; name the file that the table shall be written to, such as embeddings.parquet"
        )


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    """Write the table, whole or not at all. Raises: DataError when that cannot be done."""
    try:
        write_file(path, table.to_parquet(None, index=False))
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {path} ({error.strerror or error}); choose another place")


def _by_visit(rows: Sequence[ScanRow]) -> dict[tuple[str, str], list[ScanRow]]:
    visits: dict[tuple[str, str], list[ScanRow]] = {}
    for row in sorted(rows, key=lambda row: (row.subject, row.visit)):
        visits.setdefault((row.subject, row.visit), []).append(row)
    return visits


def _embedded(model: FrozenModel, scans: Sequence[ScanRow], refused: list[Refused]) -> SubjectEmbedding | None:
    """The embedding from all scans that can be used; one that cannot is found by asking for each alone."""
    given = {row.organ: _scan(row) for row in scans}
    try:
        return model.embed(given)
    except DataError:
        usable = [row for row in scans if _is_usable(model, row, refused)]
    return model.embed({row.organ: given[row.organ] for row in usable}) if usable else None


def _is_usable(model: FrozenModel, row: ScanRow, refused: list[Refused]) -> bool:
    try:
        model.embed({row.organ: _scan(row)})
    except DataError as error:
        refused.append((row.subject, row.visit, row.organ, str(error)))
        return False
    return True


def _scan(row: ScanRow) -> OrganScan:
    return OrganScan(
        path=row.path,
        volume=row.volume,
        label_map=row.label_map,
        label_ids=row.label_ids,
        box=row.box,
        window=row.window,
    )


def _row(subject: str, visit: str, answer: SubjectEmbedding, organs: Sequence[str]) -> Mapping[str, object]:
    shares = {f"share_{organ}": answer.attention_share.get(organ) for organ in organs}
    values = {f"e{place}": float(value) for place, value in enumerate(answer.subject)}
    return {"subject": subject, "visit": visit, "organs": "+".join(answer.organs), **shares, **values}
