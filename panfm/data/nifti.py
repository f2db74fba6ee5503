"""Reading a scan from a NIfTI file, and refusing what cannot be one, in one line that names the file.

nibabel parses the header; everything that it lets pass is checked here and in `quality.py`. A file is decompressed to
its end, so that a gzip checksum is always compared, and as a stream, so that memory is taken for one volume only, and
for none before the header's claim has been compared with what the file can hold.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from panfm.data.geometry import Affine
from panfm.data.quality import (
    Findings,
    affine_findings,
    bits_findings,
    content_findings,
    dtype_findings,
    form_code_findings,
    kept,
    label_findings,
    orientation_findings,
    plausibility_findings,
    scaling_findings,
    shape_findings,
    shear_findings,
    size_findings,
    spacing_agreement_findings,
    spacing_findings,
    thin_findings,
    trailing_findings,
    unit_factor,
    unit_findings,
)
from panfm.data.scan import Scan
from panfm.errors import DataError, ScanError

_HEADER_BYTES = {348: "nifti1", 540: "nifti2"}
_BYTE_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
_GZIP_MAX_RATIO = 1032
"""No deflate stream expands further (zlib's technical notes, "maximum compression factor")."""
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 20
_FLAG_BYTES, _EXTENSION_BYTES = 4, 16
"""Behind the header stand four bytes that say whether an extension follows, which takes 16 bytes or more (nifti1.h)."""
_SPACE_UNIT = 7
"""The bits of `xyzt_units` that are the unit of length."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which bytes of the uncompressed file are the volume."""

    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    first_byte: int
    """Where the volume starts: behind the header and the volumes before it."""
    end_byte: int
    """Where the last volume ends, by the header's claim."""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Digesting:
    """A file that takes the SHA-256 of what passes through it, compressed as it is on disk."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(size)
        self.sha256.update(content)
        return content


def read_scan(path: Path, volume: int | None = None) -> Scan:
    """Read and check one scan; see `panfm.data.reading.read_scan`.

    Raises: ScanError with the code of the finding that refuses it; DataError when the file cannot be opened.
    """
    with np.errstate(all="ignore"):  # damaged floats are findings, not warnings
        return _read(path, volume, thin_findings, content_findings)


def read_label_map(path: Path) -> Scan:
    """Read and check one label map: whole numbers, which may be thin, small, or all the same."""
    with np.errstate(all="ignore"):
        return _read(path, None, lambda shape: (), label_findings)


def _read(
    path: Path,
    volume: int | None,
    check_shape: Callable[[tuple[int, int, int]], Findings],
    check_content: Callable[[NDArray[np.float32]], Findings],
) -> Scan:
    with _opened(path) as (stored, stream, most_bytes):
        header, extended, position = _header(path, stream)
        layout, repairs = _layout(path, header, extended, volume)
        kept(path.name, (*check_shape(layout.shape), *size_findings(layout.end_byte, most_bytes)))
        affine, spacing, repairs_of_place = _geometry(path, header, layout.shape)
        content, length = _content(stream, position, layout)
        while stored.read(_CHUNK):  # what may be left behind a gzip stream belongs to the digest, too
            pass
    kept(path.name, size_findings(layout.end_byte, length))
    repairs += repairs_of_place
    repairs += kept(path.name, trailing_findings(layout.shape, layout.dtype.itemsize, length - layout.end_byte))
    repairs += kept(path.name, scaling_findings(*_scaling(header)))
    voxels = _scaled(np.frombuffer(content, layout.dtype).reshape(layout.shape, order="F"), *_scaling(header))
    repairs += kept(path.name, check_content(voxels))
    return Scan(voxels, affine, spacing, stored.sha256.hexdigest(), repairs)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[_Digesting, _Bytes, int]]:
    """The file as stored, as uncompressed, and the most bytes that it can hold uncompressed."""
    try:
        with path.open("rb") as file:
            stored, size = _Digesting(file), path.stat().st_size
            if not path.name.lower().endswith(".gz"):
                yield stored, stored, size
                return
            with gzip.GzipFile(fileobj=cast(BinaryIO, stored), mode="rb") as stream:
                yield stored, stream, size * _GZIP_MAX_RATIO
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ScanError(f"{path.name}: the gzip stream is damaged ({error}); copy it again [gzip]", "gzip") from error
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror}); correct the path or its rights") from error


def _take(stream: _Bytes, size: int) -> bytes:
    """So many bytes, or what is left: a gzip stream may give fewer than asked for."""
    parts = []
    while size > 0 and (part := stream.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _content(stream: _Bytes, position: int, layout: _Layout) -> tuple[bytearray, int]:
    """The volume's bytes, and the length of the uncompressed file, read to its end so that the checksum is compared.

    Grown and not claimed beforehand: a header that promises more than is there costs no memory.
    """
    content, end = bytearray(), layout.first_byte + layout.size_bytes
    while part := stream.read(_CHUNK):
        low, high = max(position, layout.first_byte), min(position + len(part), end)
        if low < high:
            content += part[low - position : high - position]
        position += len(part)
    return content, position


# ---- header ---------------------------------------------------------------------------------------------------------


def _header(path: Path, stream: _Bytes) -> tuple[Any, bool, int]:
    """nibabel's header object of a single-file NIfTI, taken as it stands, without nibabel's silent repairs.

    Returns: the header, whether it announces an extension, and how many bytes were read.
    """
    first = _take(stream, 4)
    for size, kind in _HEADER_BYTES.items():
        for endianness in _BYTE_ORDERS:
            if int.from_bytes(first, endianness) == size:
                first += _take(stream, size)
                if len(first) >= size:
                    return (
                        _parsed_header(path, first[:size], kind, endianness),
                        first[size : size + 1] > b"\0",
                        len(first),
                    )
    message = "not a NIfTI file: its first number should be 348 or 540; convert the scan to .nii or .nii.gz"
    if first[:2] == _GZIP_MAGIC:
        message = "compressed, but not named .nii.gz; name it so, or convert it"
    raise ScanError(f"{path.name}: {message} [not_nifti]", "not_nifti")


def _parsed_header(path: Path, block: bytes, kind: str, endianness: str) -> Any:
    header_class: Any = nib.Nifti1Header if kind == "nifti1" else nib.Nifti2Header
    header = header_class(block, endianness=endianness, check=False)
    axes = int(header["dim"][0])
    if bytes(header["magic"].item())[:2] != b"n+":
        message = "header and voxels should be in one file; convert it to .nii"
        raise ScanError(f"{path.name}: {message} [not_nifti]", "not_nifti")
    if not 1 <= axes <= 7:
        message = f"the header names {axes} axes, at most 7 can be; export it again"
        raise ScanError(f"{path.name}: {message} [header]", "header")
    return header


def _layout(path: Path, header: Any, extended: bool, volume: int | None) -> tuple[_Layout, Findings]:
    """Where the volume lies, in whole numbers that cannot overflow."""
    dims = [int(side) for side in header["dim"][1 : 1 + int(header["dim"][0])]]
    repairs = kept(path.name, shape_findings(dims, volume))
    dtype = _dtype(path, header)
    offset, first_possible = float(header["vox_offset"]), _first_possible(header, extended)
    if not (math.isfinite(offset) and offset == int(offset) and offset >= first_possible):
        message = f"voxels should start at byte {first_possible} or later, got {offset:g}; export the scan again"
        raise ScanError(f"{path.name}: {message} [header]", "header")
    shape = (dims[0], dims[1], dims[2])
    first_byte = int(offset) + (volume or 0) * math.prod(shape) * dtype.itemsize
    return _Layout(shape, dtype, first_byte, int(offset) + math.prod(dims) * dtype.itemsize), repairs


def _dtype(path: Path, header: Any) -> np.dtype[np.generic]:
    try:
        dtype: np.dtype[np.generic] = header.get_data_dtype()
    except (HeaderDataError, KeyError) as error:
        raise ScanError(f"{path.name}: voxels of a type nobody can read ({error}) [dtype]", "dtype") from error
    kept(path.name, (*dtype_findings(dtype), *bits_findings(dtype, int(header["bitpix"]))))
    return dtype


def _first_possible(header: Any, extended: bool) -> int:
    """The first byte that can hold a voxel: behind the header, the four bytes of its flag, and the least extension."""
    return int(header.structarr.dtype.itemsize) + _FLAG_BYTES + (_EXTENSION_BYTES if extended else 0)


def _scaling(header: Any) -> tuple[float, float]:
    return float(header["scl_slope"]), float(header["scl_inter"])


def _scaled(raw: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Intensities, layer by layer to spare memory; a float that does not fit becomes infinite, and is refused."""
    if slope == 0 or math.isnan(slope):
        return raw.astype(np.float32, copy=False)
    voxels = np.empty(raw.shape, np.float32, order="F")
    for z in range(raw.shape[2]):
        voxels[:, :, z] = raw[:, :, z] * slope + intercept
    return voxels


# ---- place in the world ---------------------------------------------------------------------------------------------


def _geometry(
    path: Path, header: Any, shape: tuple[int, int, int]
) -> tuple[Affine, tuple[float, float, float], Findings]:
    """Affine and spacing in millimetres, and what had to be settled on the way."""
    stated, unit = [float(step) for step in header["pixdim"][1:4]], int(header["xyzt_units"]) & _SPACE_UNIT
    sform, qform = _sform(header), _qform(header)
    repairs = kept(
        path.name,
        (
            *spacing_findings(stated),
            *form_code_findings(int(header["sform_code"]), int(header["qform_code"])),
            *orientation_findings(sform, qform, shape),
        ),
    )
    form = qform if sform is None else sform
    assert form is not None, "orientation_findings refuses a scan without either"
    kept(path.name, affine_findings(form))
    affine: Affine = np.diag([*[unit_factor(unit)] * 3, 1.0]) @ form
    x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
    findings = (
        *unit_findings(unit),
        *plausibility_findings(shape, (x, y, z)),
        *spacing_agreement_findings((x, y, z), [step * unit_factor(unit) for step in stated]),
        *shear_findings(affine),
    )
    return affine, (x, y, z), repairs + kept(path.name, findings)


def _sform(header: Any) -> Affine | None:
    return None if int(header["sform_code"]) == 0 else np.asarray(header.get_sform(), dtype=np.float64)


def _qform(header: Any) -> Affine | None:
    """The qform, None where its code is 0, NaN where its quaternion is none."""
    if int(header["qform_code"]) == 0:
        return None
    readable = header.copy()
    if float(readable["pixdim"][0]) == 0:  # nifti1.h: a qfac of 0 means 1
        readable["pixdim"][0] = 1
    try:
        return np.asarray(readable.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        return np.full((4, 4), np.nan)
