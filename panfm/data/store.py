"""The prepared store of one site: half-precision volumes that training reads by memory map, each under its digest.

A folder with `table.csv` (one line per scan), `statement.json` (what was done, by which settings and versions),
`refused.csv` (what was left out, and why) and one `.npy` per scan in a folder per organ. A file is hashed against the
table before its first crop, through the same descriptor that is then mapped; one that differs is named, never used.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import hashlib
import io
import os
import resource
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from panfm.durable import write_file
from panfm.errors import DataError, ScanError

TABLE = "table.csv"
STATEMENT = "statement.json"
REFUSED = "refused.csv"

_COLUMNS = ("subject", "visit", "organ", "file", "shape", "spacing", "source_digest", "digest", "split", "native")

_MAX_OPEN = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
"""Memory maps kept open. Each holds a file descriptor, of which many systems allow a process no more than 1,024; and it
stays well below the 65,530 maps of Linux (vm.max_map_count)."""

Triple = tuple[int, int, int]
Signature = tuple[int, int, int, int]
"""Device, inode, size and time of change of a file whose digest was compared."""


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
    native: bool = False
    """The scan's own voxels, not resampled to the study's grid."""

    @property
    def name(self) -> str:
        """Subject, visit and organ, for people of the site."""
        return " / ".join(filter(None, _key(self)))


@dataclass(frozen=True, slots=True)
class PreparedStore:
    """A prepared store, open for reading; build one with `PreparedStore.open`."""

    folder: Path
    entries: tuple[StoreEntry, ...]
    """Sorted by subject, visit and organ."""
    _verified: dict[str, Signature] = field(default_factory=dict, repr=False, compare=False)
    """Files whose digest this object has compared."""
    _maps: dict[str, NDArray[np.float16]] = field(default_factory=dict, repr=False, compare=False)
    """Open memory maps, oldest first."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    """Held while the maps change: batches may be read by several threads."""

    @classmethod
    def open(cls, folder: Path) -> PreparedStore:
        """Read the store's table; volumes are opened when they are asked for.

        Raises: DataError when there is no table, or it cannot be read.
        """
        return cls(folder, read_table(folder))

    def crop(self, entry: StoreEntry, start_XYZ: Sequence[int], shape_XYZ: Sequence[int]) -> NDArray[np.float32]:
        """A copy of part of a scan, shape `shape_XYZ`, float32.

        Raises: as `view`.
        """
        return self.view(entry, start_XYZ, shape_XYZ).astype(np.float32)

    def view(self, entry: StoreEntry, start_XYZ: Sequence[int], shape_XYZ: Sequence[int]) -> NDArray[np.float16]:
        """Part of a scan as it lies on disk, shape `shape_XYZ`: nothing is read before its voxels are looked at.

        It is for reading: what is written to it stays in memory, and later views show it.

        Raises: ScanError naming the scan when its file is missing or changed since it was prepared; DataError when the
            scan is smaller than what is asked for.
        """
        x, y, z = start_XYZ
        to_x, to_y, to_z = (start + side for start, side in zip(start_XYZ, shape_XYZ, strict=True))
        stored_x, stored_y, stored_z = entry.shape
        if min(x, y, z) < 0 or to_x > stored_x or to_y > stored_y or to_z > stored_z:
            raise DataError(
                f"{entry.name}: voxels {[x, y, z]} to {[to_x, to_y, to_z]} asked for, but {list(entry.shape)} are "
                "stored; prepare the store again with this study's grids and margin"
            )
        return self._volume(entry)[x:to_x, y:to_y, z:to_z]

    def _volume(self, entry: StoreEntry) -> NDArray[np.float16]:
        """The scan's memory map; opening one costs more than a crop, so the latest stay open."""
        volume = self._maps.get(entry.file)
        if volume is None:
            volume = self._opened(entry)
            with self._lock:
                if len(self._maps) >= _MAX_OPEN:
                    self._maps.pop(next(iter(self._maps)))
                self._maps[entry.file] = volume
        return volume

    def _opened(self, entry: StoreEntry) -> NDArray[np.float16]:
        path = self.folder / entry.file
        try:
            # Unbuffered: what is hashed and what is mapped is one open file, even if its name goes to another meanwhile.
            with path.open("rb", buffering=0) as stream:
                self._verify(stream, entry)
                return _mapped(stream)
        except FileNotFoundError as error:
            raise ScanError(f"{entry.name}: {entry.file} is missing; prepare the store again", "missing") from error
        except (OSError, ValueError) as error:
            message = f"{entry.name}: cannot read {entry.file} ({error}); prepare the store again"
            raise ScanError(message, "unreadable") from error

    def _verify(self, stream: io.FileIO, entry: StoreEntry) -> None:
        status = os.fstat(stream.fileno())
        signature = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(entry.file) == signature:
            return
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != entry.digest:
            raise ScanError(
                f"{entry.name}: {entry.file} has changed since it was prepared "
                f"(digest {found[:12]}, {entry.digest[:12]} on record); prepare it again",
                "changed",
            )
        self._verified[entry.file] = signature


def _mapped(stream: io.FileIO) -> NDArray[np.float16]:
    """A stored file's voxels by memory map; the file may be closed and unlinked afterwards."""
    stream.seek(0)
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(stream)
    # Copy on write: torch warns of arrays that cannot be written to. Nobody writes, and it would not reach the file.
    voxels: NDArray[np.float16] = np.memmap(
        stream, dtype, mode="c", offset=stream.tell(), shape=shape, order="F" if fortran_order else "C"
    )
    return voxels.view(np.ndarray)  # a plain array over the map: np.memmap costs some microseconds at every slice


def read_table(folder: Path) -> tuple[StoreEntry, ...]:
    """The entries of a store's table.

    Raises: DataError when there is none, or it cannot be read.
    """
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return tuple(_entries(csv.reader(stream)))
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no prepared store ({TABLE} is missing); prepare the site's scans") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is damaged ({error}); prepare the site's scans again") from error


def count_refused(folder: Path) -> int:
    """Scans that were left out when a store was prepared."""
    with (folder / REFUSED).open(newline="", encoding="utf-8") as stream:
        return sum(1 for _ in csv.reader(stream)) - 1


def write_table(folder: Path, entries: Sequence[StoreEntry]) -> None:
    """Write a store's table atomically, sorted by subject, visit and organ."""
    write_csv(folder / TABLE, _COLUMNS, [_cells(entry) for entry in sorted(entries, key=_key)])


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write one of the store's tables so that readers see the old one or the new one, and nothing between."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_file(path, text.getvalue().encode())


def _key(entry: StoreEntry) -> tuple[str, str, str]:
    return (entry.subject, entry.visit, entry.organ)


def _entries(lines: Iterator[list[str]]) -> Iterator[StoreEntry]:
    """A line of a large store costs microseconds and a few hundred bytes: words that repeat are kept once."""
    if tuple(next(lines, ())) != _COLUMNS:
        raise ValueError(f"its first line should be {','.join(_COLUMNS)}")
    for subject, visit, organ, file, shape, spacing, source_digest, digest, split, native in lines:
        yield StoreEntry(
            subject=intern(subject),
            visit=intern(visit),
            organ=intern(organ),
            file=file,
            shape=_shape(shape),
            spacing_mm=_spacing(spacing),
            source_digest=source_digest,
            digest=digest,
            split=intern(split),
            native=native == "yes",
        )


@lru_cache(maxsize=4096)
def _shape(text: str) -> Triple:
    x, y, z = (int(side) for side in text.split())
    return (x, y, z)


@lru_cache(maxsize=4096)
def _spacing(text: str) -> tuple[float, float, float]:
    x, y, z = (float(step) for step in text.split())
    return (x, y, z)


def _cells(entry: StoreEntry) -> list[str]:
    return [
        *_key(entry),
        entry.file,
        " ".join(str(side) for side in entry.shape),
        " ".join(repr(step) for step in entry.spacing_mm),
        entry.source_digest,
        entry.digest,
        entry.split,
        "yes" if entry.native else "",
    ]
