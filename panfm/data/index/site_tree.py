"""Everything in a folder that may be a scan, by a name without its ending, in an order that no disk can change.

A NIfTI file is one entry, and so is a folder that holds DICOM slices: `liver/s1.nii.gz` and the series in `liver/s1/` both
have the stem `liver/s1`, so that every layout takes both.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from panfm.data.dicom_files import holds_series
from panfm.data.index.found import Skipped
from panfm.errors import DataError

_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_OTHER_FORMATS = (".hdr", ".img", ".mgz", ".mgh", ".mha", ".mhd", ".nrrd", ".nhdr", ".mnc")


@dataclass(frozen=True, slots=True)
class Entry:
    """A NIfTI file or a series folder."""

    path: Path
    name: str
    """Relative to the indexed folder, with forward slashes."""

    @property
    def stem(self) -> str:
        """The name without `.nii` or `.nii.gz`."""
        return stem_of(self.name)


@dataclass(frozen=True, slots=True)
class SiteTree:
    """What a folder holds."""

    folder: Path
    entries: tuple[Entry, ...]
    """Sorted by path."""
    skipped: tuple[Skipped, ...]
    """Files that cannot be read as they are."""


def walk(folder: Path, left_out: Sequence[str] = ()) -> SiteTree:
    """The entries of a folder, without those whose stem one of the patterns matches (`*` also crosses slashes).

    Raises: DataError when there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} should be a folder of scans or a table; correct the path")
    entries, skipped = [], []
    for path in _paths(folder.absolute()):
        name = path.relative_to(folder.absolute()).as_posix()
        if reason := _reason_against(path, name, left_out):
            skipped.append(reason)
        else:
            entries.append(Entry(path, name))
    return SiteTree(folder.absolute(), tuple(entries), tuple(skipped))


def is_nifti(name: str) -> bool:
    """Whether a file is a NIfTI file by its name."""
    return _NIFTI.search(name) is not None


def stem_of(name: str) -> str:
    """A name without `.nii` or `.nii.gz`."""
    return _NIFTI.sub("", name)


def _reason_against(path: Path, name: str, left_out: Sequence[str]) -> Skipped | None:
    if not name.isprintable() or ";" in name or name != name.strip():
        shown = name.encode(errors="replace").decode()
        return Skipped(shown, "file_name", "a table cannot hold its name (line break, semicolon, alphabet); rename it")
    if any(fnmatchcase(stem_of(name), pattern) for pattern in left_out):
        return Skipped(name, "left_out", "--leave-out names it")
    if path.is_dir() or (is_nifti(name) and path.is_file()):
        return None
    if is_nifti(name):
        return Skipped(name, "missing_file", "a link to a file that is not here; fetch it, or remove the link")
    return Skipped(name, "format", "neither NIfTI nor DICOM; convert it to .nii.gz")


def _paths(folder: Path) -> Iterator[Path]:
    """NIfTI files, files of other image formats, and folders with DICOM slices, each folder once even if links make a ring."""
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); correct its rights") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        here = Path(place)
        visible = sorted(name for name in files if not name.startswith("."))
        yield from (here / name for name in visible if is_nifti(name) or name.lower().endswith(_OTHER_FORMATS))
        if any(not is_nifti(name) for name in visible) and holds_series(here):
            yield here
