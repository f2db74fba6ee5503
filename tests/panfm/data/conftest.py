"""What the tests of the data room share: scans and prepared stores made on the spot."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from panfm.data.store import PreparedStore, StoreEntry, write_table

WriteScan = Callable[..., Path]
WriteSeries = Callable[..., Path]
WriteStore = Callable[..., PreparedStore]


@pytest.fixture
def write_scan() -> WriteScan:
    """Write voxels as NIfTI; without an affine, 2 mm RAS+."""

    def write(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image_class: Any = nib.Nifti1Image
        image_class(voxels, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine).to_filename(path)
        return path

    return write


@pytest.fixture
def write_store(tmp_path: Path) -> WriteStore:
    """A store of 8-cubed volumes, margin included, spacing 4 mm, from (subject, visit, organ, split) and an int each."""

    def write(*scans: tuple[str, str, str, str]) -> PreparedStore:
        entries = []
        for number, (subject, visit, organ, split) in enumerate(scans):
            file = f"{organ}/{subject}@{visit}.npy"
            (tmp_path / organ).mkdir(exist_ok=True)
            volume = np.random.default_rng(number).standard_normal((8, 8, 8)).astype(np.float16)
            np.save(tmp_path / file, volume)
            digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
            entry = StoreEntry(
                subject=subject,
                visit=visit,
                organ=organ,
                file=file,
                shape=(8, 8, 8),
                spacing_mm=(4.0, 4.0, 4.0),
                source_digest="0" * 64,
                digest=digest,
                split=split,
            )
            entries.append(entry)
        write_table(tmp_path, entries)
        return PreparedStore.open(tmp_path)

    return write


@pytest.fixture
def write_series() -> WriteSeries:
    """Write a DICOM series of 6 x 5 pixels a slice, 0.75 mm between columns and 0.5 mm between rows, as files of a folder.

    Pixel values are 100 * column + 10 * row + slice. `tags` go into every header.
    """

    def write(
        folder: Path,
        *,
        orientation: Sequence[float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        step_mm: float = 2.0,
        heights_mm: Sequence[float] | None = None,
        drift_mm: float = 0.0,
        names: Sequence[str] | None = None,
        series: str = "1.2.3.4",
        **tags: object,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        heights = [step_mm * place for place in range(7)] if heights_mm is None else heights_mm
        row_way, column_way = np.array(orientation[:3]), np.array(orientation[3:])
        across = np.cross(row_way, column_way)
        columns, rows = np.meshgrid(np.arange(6), np.arange(5))
        for place, height in enumerate(heights):
            corner = np.array([-10.0, 20.0, 30.0]) + height * across + place * drift_mm * column_way
            pixels = (100 * columns + 10 * rows + place).astype(np.int16)
            name = names[place] if names else f"slice{place:03}.dcm"
            identity = {"SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.{place}"}
            _write_slice(folder / name, pixels, corner, orientation, {**identity, **tags})
        return folder

    return write


def _write_slice(
    path: Path,
    pixels: NDArray[np.int16],
    corner_mm: NDArray[np.float64],
    orientation: Sequence[float],
    tags: Mapping[str, object],
) -> None:
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 100"
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    header.Modality = "MR"
    header.PatientID, header.PatientName = "P1", "None^Of^Your^Business"
    header.StudyInstanceUID = "1.2.3"
    header.Rows, header.Columns = pixels.shape
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.PixelSpacing = [0.5, 0.75]
    header.ImagePositionPatient = [f"{value:.10g}" for value in corner_mm]
    header.ImageOrientationPatient = [f"{value:.10g}" for value in orientation]
    header.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)
