"""Which files of a folder are DICOM, told by their first bytes, so that tables can name a series folder like a file.

It stands apart from `dicom.py` because walking a site's disk and reading its table need no DICOM library.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from pathlib import Path

_PREAMBLE = 128
_MAGIC = b"DICM"
_ACR_NEMA = (b"\x02\x00", b"\x08\x00")
"""Files older than the preamble start with their first group, 0002 or 0008, little-endian."""


def dicom_files(folder: Path) -> tuple[Path, ...]:
    """The DICOM files that lie directly in a folder, by name; an index of a medium (DICOMDIR) is none."""
    return tuple(path for path in sorted(folder.iterdir()) if _is_dicom(path))


def holds_series(folder: Path) -> bool:
    """Whether a folder holds DICOM files; whether they make one sound series, only reading them can tell."""
    return folder.is_dir() and any(_is_dicom(path) for path in folder.iterdir())


def folder_digest(folder: Path) -> str:
    """SHA-256 over the sorted digests of a folder's files, so that renaming slices changes nothing, hexadecimal.

    Raises: OSError when a file cannot be read.
    """
    digests = sorted(_file_digest(path) for path in folder.iterdir() if path.is_file())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name.upper() == "DICOMDIR" or not path.is_file():
        return False
    try:
        with path.open("rb") as stream:
            first = stream.read(_PREAMBLE + len(_MAGIC))
    except OSError:
        return False
    return first[_PREAMBLE:] == _MAGIC or (path.suffix.lower() in (".dcm", ".ima", "") and first[:2] in _ACR_NEMA)
