"""Reading a scan from a NIfTI file, and refusing what cannot be one, in one line that names the file.

nibabel parses the header; everything that it lets pass is checked here and in `quality.py`. A file is
decompressed to its end, so that a gzip checksum is always compared, and never beyond the bytes its header claims.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gzip
import hashlib
import io
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from panfm.data.quality import (
    Finding,
    affine_findings,
    content_findings,
    dtype_findings,
    scaling_findings,
    shape_findings,
    size_findings,
    spacing_findings,
)
from panfm.errors import DataError, ScanError

_HEADER_BYTES = {348: "nifti1", 540: "nifti2"}
_GZIP_MAX_RATIO = 1032
"""No deflate stream expands further (zlib's technical notes, "maximum compression factor")."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Scan:
    """One volume as stored on disk, in the file's own axis order."""

    voxels: NDArray[np.float32]
    """Scaled intensities, shape XYZ."""
    affine: NDArray[np.float64]
    """4 x 4, voxel indices to RAS+ millimetres."""
    spacing_mm: tuple[float, float, float]
    """Distance between voxel centres along each axis of the file (millimetres)."""
    digest: str
    """SHA-256 of the file's bytes, hexadecimal."""


def read_scan(path: Path) -> Scan:
    """Read and check one scan.

    Raises: DataError naming the file when it is unreadable, cut short, not one volume of numbers, without a usable
        affine or spacing, constant, or not finite.
    """
    return _read(path, content_findings)


def read_label_map(path: Path) -> Scan:
    """Read and check one label map: as `read_scan`, but a map may hold one label only."""
    return _read(path, lambda voxels: tuple(f for f in content_findings(voxels) if f.code != "constant"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises: DataError when it cannot be read.
    """
    return hashlib.sha256(_file_bytes(path)).hexdigest()


def _read(path: Path, check_content: Callable[[NDArray[np.float32]], tuple[Finding, ...]]) -> Scan:
    stored = _file_bytes(path)
    header = _header(path, _first_bytes(path, stored))
    claimed = _claimed_bytes(path, header)
    _refuse(path, size_findings(claimed, len(stored) * (_GZIP_MAX_RATIO if _is_gzip(path) else 1)))
    affine, spacing = _geometry(path, header)
    voxels = _voxels(path, header, _all_bytes(path, stored, claimed))
    _refuse(path, check_content(voxels))
    return Scan(voxels=voxels, affine=affine, spacing_mm=spacing, digest=hashlib.sha256(stored).hexdigest())


def _refuse(path: Path, findings: Iterable[Finding]) -> None:
    for finding in findings:
        raise ScanError(f"{path.name}: {finding.message} [{finding.code}]", finding.code)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}); correct the path or its rights") from error


def _decompress(path: Path, stored: bytes, take: Callable[[gzip.GzipFile], bytes]) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(stored)) as stream:
            return take(stream)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanError(f"{path.name}: the gzip stream is damaged ({error}); copy it again [gzip]", "gzip") from error


def _first_bytes(path: Path, stored: bytes) -> bytes:
    size = max(_HEADER_BYTES)
    return _decompress(path, stored, lambda stream: stream.read(size)) if _is_gzip(path) else stored[:size]


def _all_bytes(path: Path, stored: bytes, claimed: int) -> bytes:
    """The decompressed file, at most the claimed bytes of it, read to the end so that the checksum is compared."""

    def take(stream: gzip.GzipFile) -> bytes:
        content = stream.read(claimed)
        while stream.read(_CHUNK):
            pass
        return content

    if not _is_gzip(path):
        return stored
    content = _decompress(path, stored, take)
    _refuse(path, size_findings(claimed, len(content)))
    return content


def _header(path: Path, first: bytes) -> Any:
    """nibabel's header object of a single-file NIfTI, taken as it stands, without nibabel's silent repairs."""
    for size, kind in _HEADER_BYTES.items():
        sizes = {int.from_bytes(first[:4], "little"), int.from_bytes(first[:4], "big")}
        if len(first) >= size and size in sizes:
            return _parsed_header(path, first[:size], kind)
    message = "not a NIfTI file: its first number should be 348 or 540; convert the scan to .nii or .nii.gz"
    raise ScanError(f"{path.name}: {message} [not_nifti]", "not_nifti")


def _parsed_header(path: Path, block: bytes, kind: str) -> Any:
    header_class: Any = nib.Nifti1Header if kind == "nifti1" else nib.Nifti2Header
    try:
        header = header_class(block, check=False)
        magic, axes = bytes(header["magic"].item()), int(header["dim"][0])
    except (HeaderDataError, ValueError) as error:
        raise ScanError(f"{path.name}: the header is damaged ({error}); export it again [header]", "header") from error
    if magic[:2] != b"n+":
        raise ScanError(
            f"{path.name}: header and voxels should be in one file; convert it to .nii [not_nifti]", "not_nifti"
        )
    if not 1 <= axes <= 7:
        raise ScanError(
            f"{path.name}: the header names {axes} axes, at most 7 can be; export it again [header]", "header"
        )
    return header


def _claimed_bytes(path: Path, header: Any) -> int:
    """Bytes of the uncompressed file by its own header, in whole numbers that cannot overflow."""
    try:
        shape = [int(side) for side in header["dim"][1 : 1 + int(header["dim"][0])]]
        dtype = header.get_data_dtype()
        offset = float(header["vox_offset"])
    except (HeaderDataError, KeyError, ValueError) as error:
        raise ScanError(f"{path.name}: voxels of a type nobody can read ({error}) [dtype]", "dtype") from error
    _refuse(path, (*shape_findings(shape), *dtype_findings(dtype)))
    if not (math.isfinite(offset) and offset >= header.structarr.dtype.itemsize):
        raise ScanError(
            f"{path.name}: voxels cannot start at byte {offset:g}; export the scan again [header]", "header"
        )
    return int(offset) + math.prod(shape) * int(dtype.itemsize)


def _geometry(path: Path, header: Any) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise DataError(
            f"{path.name}: the orientation is damaged ({error}); restore sform or qform [header]"
        ) from error
    x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    stated = [float(step) for step in header["pixdim"][1:4]]
    _refuse(path, (*affine_findings(affine), *spacing_findings((x, y, z)), *spacing_findings(stated)))
    return affine, (x, y, z)


def _voxels(path: Path, header: Any, content: bytes) -> NDArray[np.float32]:
    """Scaled voxels without trailing singleton axes; a float that does not fit becomes infinite, and is refused."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    _refuse(path, scaling_findings(slope, intercept))
    shape = tuple(int(side) for side in header["dim"][1:4])
    dtype, offset = header.get_data_dtype(), int(header["vox_offset"])
    raw = np.frombuffer(content, dtype, count=math.prod(shape), offset=offset).reshape(shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        # NIfTI: a slope of 0 (or, by custom, NaN) means that intensities are stored as they are.
        scaled = raw if slope == 0 or math.isnan(slope) else raw * slope + intercept
        return scaled.astype(np.float32)
