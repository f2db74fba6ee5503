"""The one door through which scans come in: a NIfTI file or the folder of a DICOM series, by what lies at the path.

Whoever prepares, checks or shows a scan reads it here, so that all of them pass the same verdict on it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from panfm.data import nifti
from panfm.data.dicom_files import folder_digest
from panfm.data.scan import Scan
from panfm.errors import DataError, ScanError


def read_scan(path: Path, volume: int | None = None) -> Scan:
    """Read and check one scan.

    Args:
        path: a NIfTI file, or a folder that holds one DICOM series.
        volume: which volume of a 4D file, counted from 0; None for a file that holds one.
    Raises: ScanError with the finding's code when it cannot be used; DataError when it cannot be read.
    """
    with _within_memory(path):
        if path.is_dir():
            from panfm.data.dicom import read_series  # its library is large, and most sites have converted their scans

            return read_series(path)
        return nifti.read_scan(path, volume)


def read_label_map(path: Path) -> Scan:
    """Read and check one label map: as `read_scan`, but a map may be thin, small, or of one label only."""
    with _within_memory(path):
        return nifti.read_label_map(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; of a series folder, over the sorted digests of its files, whatever their names.

    Raises: DataError when it cannot be read.
    """
    try:
        if path.is_dir():
            return folder_digest(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}); correct the path or its rights") from error


@contextmanager
def _within_memory(path: Path) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        message = "the scan needs more memory than there is; use fewer --workers or a larger machine"
        raise ScanError(f"{path.name}: {message} [too_large]", "too_large") from error
