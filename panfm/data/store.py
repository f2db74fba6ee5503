"""The prepared store of one site: half-precision volumes that training reads by memory map, each under its digest.

A folder with `table.csv` (one line per scan), `statement.json` (what was done, by which settings and versions),
`refused.csv` (what was left out, and why) and one `.npy` per scan in a folder per organ. A file is hashed against the
table before its first crop; one that differs is named, never used.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panfm.errors import DataError

TABLE = "table.csv"
STATEMENT = "statement.json"
REFUSED = "refused.csv"

_COLUMNS = ("subject", "visit", "organ", "file", "shape", "spacing", "source_digest", "digest", "split")

_MAX_OPEN = 4096
"""Memory maps kept open; well below the 65,530 that Linux allows a process (vm.max_map_count)."""

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """One prepared scan."""

    subject: str
    visit: str
    organ: str
    file: str
    """Path below the store's folder, with forward slashes."""
    shape: Triple
    """Stored voxels XYZ, margin included."""
    spacing_mm: tuple[float, float, float]
    source_digest: str
    """SHA-256 over the digests of the scan and its label maps."""
    digest: str
    """SHA-256 of the stored file."""
    split: str = ""


@dataclass(frozen=True, slots=True)
class PreparedStore:
    """A prepared store, open for reading; build one with `PreparedStore.open`."""

    folder: Path
    entries: tuple[StoreEntry, ...]
    """Sorted by subject, visit and organ."""
    _verified: set[str] = field(default_factory=set, repr=False, compare=False)
    """Files whose digest this object has compared."""
    _maps: dict[str, NDArray[np.float16]] = field(default_factory=dict, repr=False, compare=False)
    """Open memory maps, oldest first."""

    @classmethod
    def open(cls, folder: Path) -> PreparedStore:
        """Read the store's table; volumes are opened when they are asked for.

        Raises: DataError when there is no table, or it cannot be read.
        """
        return cls(folder, read_table(folder))

    def crop(self, entry: StoreEntry, start_XYZ: Sequence[int], shape_XYZ: Sequence[int]) -> NDArray[np.float32]:
        """A copy of part of a scan, shape `shape_XYZ`, float32.

        Raises: DataError naming the scan when its file is missing, changed since it was prepared, or too small.
        """
        stop = [start + side for start, side in zip(start_XYZ, shape_XYZ, strict=True)]
        if min(start_XYZ) < 0 or any(end > side for end, side in zip(stop, entry.shape, strict=True)):
            raise DataError(
                f"{_name(entry)}: voxels {list(start_XYZ)} to {stop} asked for, but {list(entry.shape)} are stored; "
                "prepare the store again with this study's grids and margin"
            )
        window = tuple(slice(start, end) for start, end in zip(start_XYZ, stop, strict=True))
        return self._volume(entry)[window].astype(np.float32)

    def _volume(self, entry: StoreEntry) -> NDArray[np.float16]:
        """The scan's memory map; opening one costs more than a crop, so the latest stay open."""
        volume = self._maps.get(entry.file)
        if volume is None:
            volume = self._opened(entry)
            if len(self._maps) >= _MAX_OPEN:
                self._maps.pop(next(iter(self._maps)))
            self._maps[entry.file] = volume
        return volume

    def _opened(self, entry: StoreEntry) -> NDArray[np.float16]:
        path = self.folder / entry.file
        try:
            if entry.file not in self._verified:
                _verify(path, entry)
                self._verified.add(entry.file)
            volume: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{_name(entry)}: cannot read {entry.file} ({error}); prepare the store again") from error
        return volume


def read_table(folder: Path) -> tuple[StoreEntry, ...]:
    """The entries of a store's table.

    Raises: DataError when there is none, or it cannot be read.
    """
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return tuple(_entry(cells) for cells in csv.DictReader(stream))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no prepared store ({TABLE} is missing); prepare the site's scans") from error
    except (OSError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the site's scans again") from error


def write_table(folder: Path, entries: Sequence[StoreEntry]) -> None:
    """Write a store's table atomically, sorted by subject, visit and organ."""
    write_csv(folder / TABLE, _COLUMNS, [_cells(entry) for entry in sorted(entries, key=_key)])


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write one of the store's tables so that readers see the old one or the new one, and nothing between."""
    lines = [header, *rows]
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(lines)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _verify(path: Path, entry: StoreEntry) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != entry.digest:
        raise DataError(
            f"{_name(entry)}: {entry.file} has changed since it was prepared "
            f"(digest {found[:12]}, {entry.digest[:12]} on record); prepare it again"
        )


def _key(entry: StoreEntry) -> tuple[str, str, str]:
    return (entry.subject, entry.visit, entry.organ)


def _name(entry: StoreEntry) -> str:
    return " / ".join(filter(None, _key(entry)))


def _entry(cells: dict[str, str]) -> StoreEntry:
    x, y, z = (int(side) for side in cells["shape"].split())
    sx, sy, sz = (float(step) for step in cells["spacing"].split())
    return StoreEntry(
        subject=cells["subject"],
        visit=cells["visit"],
        organ=cells["organ"],
        file=cells["file"],
        shape=(x, y, z),
        spacing_mm=(sx, sy, sz),
        source_digest=cells["source_digest"],
        digest=cells["digest"],
        split=cells["split"],
    )


def _cells(entry: StoreEntry) -> list[str]:
    return [
        *_key(entry),
        entry.file,
        " ".join(str(side) for side in entry.shape),
        " ".join(repr(step) for step in entry.spacing_mm),
        entry.source_digest,
        entry.digest,
        entry.split,
    ]
