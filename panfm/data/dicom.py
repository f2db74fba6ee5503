"""Reading a DICOM series: a folder of slices becomes one scan, or is refused with what to do.

GDCM, through SimpleITK, decodes pixels and tags. Which slices belong together, their order and their place in the world
are decided here, from the positions in the headers alone: libraries stack what they find, and a missing slice or a second
series then bends the anatomy without a word. No header text other than numbers leaves this file.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from panfm.data.dicom_files import dicom_files, folder_digest
from panfm.data.dicom_lengths import elements_fit
from panfm.data.quality import (
    affine_findings,
    content_findings,
    kept,
    plausibility_findings,
    shear_findings,
    spacing_findings,
    thin_findings,
)
from panfm.data.scan import Scan
from panfm.errors import DataError, ScanError

_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"
_SERIES, _STUDY, _PATIENT = "0020|000e", "0020|000d", "0010|0020"
_PHOTOMETRIC, _FRAMES = "0028|0004", "0028|0008"

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

_STEP_TOLERANCE = 0.05
"""Of the distance between slices. Headers that round positions to 0.1 mm give 1.2 and 1.3 mm for steps of 1.25 mm: 4 %."""
_SAME_PLACE_MM = 0.01
_ORIENTATION_TOLERANCE = 1e-3
"""Of direction cosines that should be equal, or unit vectors at right angles; headers carry six digits or more."""
_MOST_COMPRESSION = 1000
"""No codec stores a slice of anatomy in fewer bytes than this share of its voxels."""


@dataclass(frozen=True, slots=True)
class SeriesIdentity:
    """Who and when a series is of, as its header says: to be turned into pseudonyms and never to be written down."""

    patient: str
    study: str


@dataclass(frozen=True, slots=True)
class _Slice:
    path: Path
    series: str
    columns: int
    rows: int
    position_mm: NDArray[np.float64]
    """Centre of the first pixel, LPS+."""
    orientation: NDArray[np.float64]
    """Shape (2, 3): directions of a row (columns grow) and of a column (rows grow), LPS+."""
    spacing_mm: tuple[float, float]
    """Between columns, between rows."""


def read_series(folder: Path) -> Scan:
    """Read and check the one series of a folder.

    Voxels are X along a slice's rows, Y down its columns, Z from slice to slice in the order of their places, as
    `dcm2niix` has it up to flips; the affine says where each lies, a tilted gantry included.

    Raises: ScanError naming the folder when it holds no series or several, when slices are missing, repeated, uneven or
        do not fit each other, or when the content is no image; DataError when a file cannot be read.
    """
    with _quiet():
        slices = _in_order(folder, _checked(folder, _read_headers(folder)))
        affine = _affine(slices)
        x, y, z = (float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))
        shape = (slices[0].columns, slices[0].rows, len(slices))
        kept(folder.name, (*thin_findings(shape), *affine_findings(affine), *spacing_findings((x, y, z))))
        repairs = kept(folder.name, (*shear_findings(affine), *plausibility_findings(shape, (x, y, z))))
        voxels = _stack(folder, slices)
    repairs += kept(folder.name, content_findings(voxels))
    return Scan(voxels=voxels, affine=affine, spacing_mm=(x, y, z), digest=_digest(folder), repairs=repairs)


def series_identity(folder: Path) -> SeriesIdentity:
    """Patient and study of a series folder, by its first file; empty where the header is silent.

    Raises: ScanError when there is no DICOM file, or it cannot be read.
    """
    first = _files(folder)[0]
    _check_lengths(folder, first)
    with _quiet():
        reader = _reader(folder, first)
        return SeriesIdentity(patient=_text(reader, _PATIENT), study=_text(reader, _STUDY))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the C++ library's remarks off the terminal; what matters in them is checked here."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _refused(folder: Path, code: str, message: str) -> NoReturn:
    raise ScanError(f"{folder.name}: {message} [{code}]", code)


def _digest(folder: Path) -> str:
    try:
        return folder_digest(folder)
    except OSError as error:
        raise DataError(f"{folder.name}: cannot be read ({error.strerror}); correct its rights") from error


def _files(folder: Path) -> tuple[Path, ...]:
    try:
        files = dicom_files(folder)
    except OSError as error:
        raise DataError(f"{folder.name}: cannot be read ({error.strerror}); correct the path or its rights") from error
    if not files:
        _refused(folder, "no_series", "a folder should hold the slices of one DICOM series, this one holds none")
    return files


# ---- headers --------------------------------------------------------------------------------------------------------


def _read_headers(folder: Path) -> list[_Slice]:
    return [_read_header(folder, path) for path in _files(folder)]


def _check_lengths(folder: Path, path: Path) -> None:
    """Before the library takes memory for what a damaged field claims."""
    try:
        whole = elements_fit(path)
    except OSError as error:
        raise DataError(f"{folder.name}: cannot read {path.name} ({error.strerror}); correct its rights") from error
    if not whole:
        _refused(folder, "too_short", f"{path.name} claims more than it holds, or is damaged; copy the series again")


def _reader(folder: Path, path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        _refused(folder, "dicom", f"{path.name} holds no image or is damaged; copy the series again, its slices alone")
    return reader


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
    return str(reader.GetMetaData(tag)).strip(" \0") if reader.HasMetaDataKey(tag) else ""


def _read_header(folder: Path, path: Path) -> _Slice:
    _check_lengths(folder, path)
    reader = _reader(folder, path)
    columns, rows = (int(side) for side in reader.GetSize()[:2])
    _check_kind(folder, path, reader)
    _check_pixels(folder, path, columns * rows)
    orientation = _numbers(folder, path, reader, _ORIENTATION, 6).reshape(2, 3)
    between_rows, between_columns = _numbers(folder, path, reader, _PIXEL_SPACING, 2)
    return _Slice(
        path=path,
        series=_text(reader, _SERIES),
        columns=columns,
        rows=rows,
        position_mm=_numbers(folder, path, reader, _POSITION, 3),
        orientation=orientation,
        spacing_mm=(float(between_columns), float(between_rows)),
    )


def _check_kind(folder: Path, path: Path, reader: sitk.ImageFileReader) -> None:
    photometric, frames = _text(reader, _PHOTOMETRIC), _text(reader, _FRAMES)
    if frames not in ("", "1") or (len(reader.GetSize()) > 2 and reader.GetSize()[2] > 1):
        _refused(folder, "multiframe", f"{path.name} holds many frames in one file; convert the series to NIfTI")
    if reader.GetNumberOfComponents() != 1 or photometric not in ("MONOCHROME2", ""):
        _refused(
            folder, "colour", f"{path.name} is a colour or inverted picture; export the original grey-scale slices"
        )


def _check_pixels(folder: Path, path: Path, num_pixels: int) -> None:
    """Before memory is taken for them."""
    if num_pixels > path.stat().st_size * _MOST_COMPRESSION:
        _refused(folder, "too_short", f"{path.name} claims {num_pixels:,} pixels and is far too small; copy it again")


def _numbers(folder: Path, path: Path, reader: sitk.ImageFileReader, tag: str, count: int) -> NDArray[np.float64]:
    try:
        values = np.array([float(part) for part in _text(reader, tag).split("\\")])
    except ValueError:
        values = np.array([])
    if values.size != count or not np.isfinite(values).all():
        what = {_POSITION: "position", _ORIENTATION: "orientation", _PIXEL_SPACING: "pixel spacing"}[tag]
        _refused(folder, "no_geometry", f"{path.name} has no usable {what}; export the original slices, no screenshots")
    return values


# ---- which slices belong together -----------------------------------------------------------------------------------


def _checked(folder: Path, slices: Sequence[_Slice]) -> Sequence[_Slice]:
    """The slices, all of one series, size, spacing and orientation."""
    first = slices[0]
    if count := len({one.series for one in slices}) - 1:
        sizes = sorted((sum(one.series == name for one in slices) for name in {s.series for s in slices}), reverse=True)
        text = ", ".join(str(size) for size in sizes)
        _refused(folder, "several_series", f"{count + 1} series of {text} slices lie in it; give each a folder")
    if len(slices) == 1:
        _refused(folder, "single_slice", "a volume is needed, got one slice; export the whole series")
    if not _all_alike(slices, lambda one: np.array([one.columns, one.rows]), 0):
        _refused(folder, "mixed_sizes", "slices differ in rows or columns; export one reconstruction of the series")
    if not _all_alike(slices, lambda one: one.orientation, _ORIENTATION_TOLERANCE):
        _refused(folder, "mixed_orientations", "slices lie in several planes; take localisers out of the folder")
    if not _all_alike(slices, lambda one: np.array(one.spacing_mm), 1e-3 * min(first.spacing_mm)):
        _refused(folder, "mixed_sizes", "slices differ in pixel spacing; export one reconstruction of the series")
    if not np.allclose(first.orientation @ first.orientation.T, np.eye(2), rtol=0, atol=_ORIENTATION_TOLERANCE):
        _refused(folder, "orientation", "rows and columns are not at right angles; export the series again")
    return slices


def _all_alike(slices: Sequence[_Slice], of: Callable[[_Slice], NDArray[np.generic]], tolerance: float) -> bool:
    return all(np.allclose(of(one), of(slices[0]), rtol=0, atol=tolerance) for one in slices)


def _normal(slices: Sequence[_Slice]) -> NDArray[np.float64]:
    across: NDArray[np.float64] = np.cross(*slices[0].orientation)
    return across / np.linalg.norm(across)


def _in_order(folder: Path, slices: Sequence[_Slice]) -> list[_Slice]:
    """The slices along their normal, evenly spaced: names and instance numbers may say anything."""
    normal = _normal(slices)
    ordered = sorted(slices, key=lambda one: float(one.position_mm @ normal))
    heights = np.array([one.position_mm @ normal for one in ordered])
    _check_steps(folder, np.diff(heights))
    _check_line(folder, np.array([one.position_mm for one in ordered]), heights)
    return ordered


def _check_steps(folder: Path, steps_mm: NDArray[np.float64]) -> None:
    if steps_mm.min() < _SAME_PLACE_MM:
        repeated = int((steps_mm < _SAME_PLACE_MM).sum())
        _refused(
            folder,
            "repeated_slices",
            f"{repeated} of {steps_mm.size + 1} slices lie where another lies: several volumes (phases, echoes) in one "
            "series, or copies; give each volume a folder",
        )
    step = float(np.median(steps_mm))
    multiples = np.round(steps_mm / step)
    if np.abs(steps_mm - multiples * step).max() > _STEP_TOLERANCE * step or multiples.min() < 1:
        low, high = steps_mm.min(), steps_mm.max()
        message = f"slices lie {low:.3g} to {high:.3g} mm apart, they should be even; export one even reconstruction"
        _refused(folder, "uneven_slices", message)
    if missing := int((multiples - 1).sum()):
        _refused(folder, "missing_slices", f"{missing} slices are missing between others; copy the series again")


def _check_line(folder: Path, positions_mm: NDArray[np.float64], heights: NDArray[np.float64]) -> None:
    """Slices stand on one straight line, upright or tilted."""
    share = (heights - heights[0]) / (heights[-1] - heights[0])
    expected = positions_mm[0] + share[:, None] * (positions_mm[-1] - positions_mm[0])
    step = (heights[-1] - heights[0]) / (len(heights) - 1)
    if np.linalg.norm(positions_mm - expected, axis=1).max() > _STEP_TOLERANCE * step:
        _refused(folder, "uneven_slices", "slices are shifted against each other; export one even reconstruction")


# ---- the volume -----------------------------------------------------------------------------------------------------


def _affine(slices: Sequence[_Slice]) -> NDArray[np.float64]:
    """Voxel indices to RAS+ millimetres (DICOM PS3.3 C.7.6.2.1.1, whose coordinates are LPS+)."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing_mm[0]
    affine[:3, 1] = first.orientation[1] * first.spacing_mm[1]
    affine[:3, 2] = (last.position_mm - first.position_mm) / (len(slices) - 1)
    affine[:3, 3] = first.position_mm
    return _LPS_TO_RAS @ affine


def _stack(folder: Path, slices: Sequence[_Slice]) -> NDArray[np.float32]:
    """Rescaled intensities (CT: Hounsfield units), slice by slice, because each may carry a rescale slope of its own."""
    shape = (slices[0].columns, slices[0].rows, len(slices))
    voxels = np.empty(shape, dtype=np.float32, order="F")
    for place, one in enumerate(slices):
        try:
            image = _reader(folder, one.path).Execute()
        except RuntimeError:
            _refused(folder, "dicom", f"the pixels of {one.path.name} cannot be decoded; copy the series again")
        voxels[:, :, place] = sitk.GetArrayViewFromImage(image).reshape(one.rows, one.columns).T
    return voxels
