"""A series comes out where its slices lie in the patient, whatever their names and order; what is no series is refused."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from panfm.data.dicom import read_series, series_identity
from panfm.data.dicom_files import dicom_files, holds_series
from panfm.data.geometry import region_on_grid
from panfm.data.index.pseudonym import PseudonymKey
from panfm.data.reading import file_digest
from panfm.errors import ScanError

nib: Any = nibabel  # its types are incomplete

WriteSeries = Callable[..., Path]

COLUMNS, ROWS, SLICES = 6, 5, 7
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) @ np.array(
    [[1.0, 0.0, 0.0], [0.0, 0.28, -0.96], [0.0, 0.96, 0.28]]
)
OBLIQUE = (*TURN[:, 0], *TURN[:, 1])


def _value(column: int, row: int, place: int) -> int:
    return 100 * column + 10 * row + place


def _refused(folder: Path, code: str) -> None:
    with pytest.raises(ScanError, match=rf"^{folder.name}: .* \[{code}\]$") as caught:
        read_series(folder)
    assert caught.value.code == code


def _edit(path: Path, **tags: object) -> None:
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        if value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.save_as(path)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_each_voxel_lies_where_the_standard_puts_it(
    tmp_path: Path, write_series: WriteSeries, orientation: tuple[float, ...]
) -> None:
    # PS3.3 C.7.6.2.1.1 written the slow way: column index times column spacing along the row's direction, and so on.
    scan = read_series(write_series(tmp_path / "a", orientation=orientation, step_mm=2.5))
    row_way, column_way = np.array(orientation[:3]), np.array(orientation[3:])
    across = np.cross(row_way, column_way)
    for column, row, place in ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 6), (3, 2, 4)):
        lps = np.array([-10.0, 20.0, 30.0]) + column * 0.75 * row_way + row * 0.5 * column_way + place * 2.5 * across
        ras = lps * (-1, -1, 1)
        x, y, z = np.round(np.linalg.inv(scan.affine) @ [*ras, 1])[:3].astype(int)
        np.testing.assert_allclose((scan.affine @ [x, y, z, 1])[:3], ras, atol=1e-6)
        assert scan.voxels[x, y, z] == _value(column, row, place)
    assert scan.spacing_mm == pytest.approx((0.75, 0.5, 2.5))
    assert scan.voxels.shape == (COLUMNS, ROWS, SLICES)
    assert scan.repairs == ()


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.permutations(range(SLICES)))
def test_names_of_slices_say_nothing(tmp_path: Path, write_series: WriteSeries, names: list[int]) -> None:
    first = write_series(tmp_path / "first")
    other = write_series(tmp_path / "other", names=[f"{name}" for name in names])
    a, b = read_series(first), read_series(other)
    np.testing.assert_array_equal(a.voxels, b.voxels)
    np.testing.assert_array_equal(a.affine, b.affine)
    assert a.digest == b.digest == file_digest(other)
    shutil.rmtree(other)


def test_rescaled_by_each_slice_of_its_own(tmp_path: Path, write_series: WriteSeries) -> None:
    folder = write_series(tmp_path / "ct")
    for path in dicom_files(folder):
        _edit(path, RescaleIntercept="-1024", RescaleSlope="2")
    assert read_series(folder).voxels[1, 2, 3] == 2 * _value(1, 2, 3) - 1024
    _edit(folder / "slice003.dcm", RescaleSlope="0.5")
    assert read_series(folder).voxels[1, 2, 3] == 0.5 * _value(1, 2, 3) - 1024
    assert read_series(folder).voxels[1, 2, 2] == 2 * _value(1, 2, 2) - 1024


def test_a_tilted_gantry_is_kept_in_the_affine(tmp_path: Path, write_series: WriteSeries) -> None:
    scan = read_series(write_series(tmp_path / "ct", step_mm=3.0, drift_mm=0.5))
    np.testing.assert_allclose(scan.affine[:3, 2], [0, -0.5, 3.0], atol=1e-6)
    assert [finding.code for finding in scan.repairs] == ["gantry_tilt"]


def test_positions_rounded_to_a_tenth_are_even(tmp_path: Path, write_series: WriteSeries) -> None:
    scan = read_series(write_series(tmp_path / "ct", heights_mm=[round(1.25 * k, 1) for k in range(SLICES)]))
    assert scan.spacing_mm[2] == pytest.approx(1.25, abs=0.01)


def test_empty_folder_and_folder_without_dicom(tmp_path: Path) -> None:
    _refused(tmp_path, "no_series")
    (tmp_path / "readme.txt").write_text("x" * 500)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert not holds_series(tmp_path)
    _refused(tmp_path, "no_series")


def test_two_series_in_one_folder(tmp_path: Path, write_series: WriteSeries) -> None:
    write_series(tmp_path / "ct", names=[f"a{k}" for k in range(SLICES)])
    write_series(tmp_path / "ct", names=[f"b{k}" for k in range(SLICES)], series="1.2.3")
    with pytest.raises(ScanError, match=r"2 series of 7, 7 slices lie in it; give each a folder"):
        read_series(tmp_path / "ct")


@pytest.mark.parametrize(
    ("heights_mm", "code"),
    [
        ([0, 2, 4, 8, 10, 12, 14], "missing_slices"),
        ([0, 2, 4, 10, 12, 14, 20], "missing_slices"),
        ([0, 2, 4, 7, 9, 11, 13], "uneven_slices"),
        ([0, 2, 4, 6, 8, 10, 10.5], "uneven_slices"),
        ([0, 2, 4, 6, 8, 8, 10], "repeated_slices"),
        ([0, 0, 2, 2, 4, 4, 6], "repeated_slices"),
    ],
)
def test_slices_that_do_not_stand_evenly(
    tmp_path: Path, write_series: WriteSeries, heights_mm: list[float], code: str
) -> None:
    _refused(write_series(tmp_path / "ct", heights_mm=heights_mm), code)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gone=st.integers(1, SLICES - 2))
def test_any_one_slice_that_is_missing_inside_is_noticed(tmp_path: Path, write_series: WriteSeries, gone: int) -> None:
    folder = write_series(tmp_path / "ct")
    (folder / f"slice{gone:03}.dcm").unlink()
    with pytest.raises(ScanError, match="1 slices are missing"):
        read_series(folder)


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "mixed_orientations"),
        ({"PixelSpacing": [0.6, 0.75]}, "mixed_sizes"),
        ({"Rows": ROWS - 1, "PixelData": bytes(2 * COLUMNS * (ROWS - 1))}, "mixed_sizes"),
        ({"ImagePositionPatient": None}, "no_geometry"),
        ({"ImageOrientationPatient": None}, "no_geometry"),
        ({"PixelSpacing": None}, "no_geometry"),
        ({"ImagePositionPatient": [-4.0, 26.0, 36.0]}, "uneven_slices"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "colour"),
        ({"Rows": 60000, "Columns": 60000}, "too_short"),
    ],
)
def test_a_slice_that_does_not_fit_the_others(
    tmp_path: Path, write_series: WriteSeries, tags: dict[str, object], code: str
) -> None:
    folder = write_series(tmp_path / "ct")
    _edit(folder / "slice003.dcm", **tags)
    _refused(folder, code)


def test_skewed_pixels_and_flat_content(tmp_path: Path, write_series: WriteSeries) -> None:
    _refused(write_series(tmp_path / "skewed", orientation=(1.0, 0.0, 0.0, 0.3, 1.0, 0.0)), "orientation")
    folder = write_series(tmp_path / "flat")
    for path in dicom_files(folder):
        _edit(path, PixelData=bytes(2 * COLUMNS * ROWS))
    _refused(folder, "constant")


def test_one_slice_colours_and_frames(tmp_path: Path, write_series: WriteSeries) -> None:
    single = write_series(tmp_path / "single", heights_mm=[0.0])
    _refused(single, "single_slice")
    frames = write_series(tmp_path / "frames")
    _edit(frames / "slice000.dcm", NumberOfFrames=2, PixelData=bytes(4 * COLUMNS * ROWS))
    _refused(frames, "multiframe")
    colours = write_series(tmp_path / "colours")
    rgb = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    _edit(colours / "slice000.dcm", PhotometricInterpretation="RGB", PixelData=bytes(3 * COLUMNS * ROWS), **rgb)
    _refused(colours, "colour")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_slice_cut_short_never_passes(tmp_path: Path, write_series: WriteSeries, cut: float) -> None:
    folder = write_series(tmp_path / "ct")
    path = folder / "slice002.dcm"
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(ScanError, match=r"\[(dicom|too_short|missing_slices|no_geometry|colour)\]"):
        read_series(folder)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_get_a_verdict(
    tmp_path: Path, write_series: WriteSeries, places: list[tuple[float, int]]
) -> None:
    folder = write_series(tmp_path / "ct")
    content = bytearray((folder / "slice002.dcm").read_bytes())
    for place, value in places:
        content[int(place * len(content))] = value
    (folder / "slice002.dcm").write_bytes(content)
    try:
        scan = read_series(folder)
    except ScanError:
        return
    assert scan.voxels.shape in ((COLUMNS, ROWS, SLICES), (COLUMNS, ROWS, SLICES - 1))
    assert np.isfinite(scan.voxels).all()


def test_identity_in_any_alphabet(tmp_path: Path, write_series: WriteSeries) -> None:
    identity = series_identity(write_series(tmp_path / "a", PatientID="Jürgen-17", StudyInstanceUID="1.2.9"))
    other = series_identity(write_series(tmp_path / "b", PatientID="Jörgen-17", StudyInstanceUID="1.2.9"))
    assert identity.study == "1.2.9"
    assert len({identity.patient, other.patient, ""}) == 3
    # The header's bytes are not decoded by its alphabet; that they can be hashed is what counts.
    assert PseudonymKey(bytes(32)).subject(identity.patient) != PseudonymKey(bytes(32)).subject(other.patient)


def test_no_word_on_the_terminal(tmp_path: Path, write_series: WriteSeries, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_series(tmp_path / "ct")
    _edit(folder / "slice003.dcm", SpacingBetweenSlices="9")
    read_series(folder)
    (folder / "slice004.dcm").write_bytes((folder / "slice004.dcm").read_bytes()[:-20])
    _refused(folder, "too_short")
    assert capfd.readouterr() == ("", "")


# ---- a real series, and the trap beside it: its label map's axes run LAS, the series' LPS -------------------------------


@pytest.fixture(scope="module")
def real_series(real_data: Path) -> Any:
    return read_series(real_data / "abdomen_totalsegmentator" / "example_ct_dicom")


def test_real_series_agrees_with_its_headers(real_data: Path, real_series: Any) -> None:
    folder = real_data / "abdomen_totalsegmentator" / "example_ct_dicom"
    headers: list[Dataset] = [pydicom.dcmread(path, stop_before_pixels=True) for path in dicom_files(folder)]
    lowest = min(headers, key=lambda header: float(header.ImagePositionPatient[2]))
    x, y, z = (float(value) for value in lowest.ImagePositionPatient)
    np.testing.assert_allclose(real_series.affine[:3, 3], [-x, -y, z])
    assert real_series.voxels.shape == (512, 512, 20)
    assert real_series.spacing_mm == pytest.approx((0.9765625, 0.9765625, 2.0))


def test_real_organs_have_the_tissue_of_their_kind(real_data: Path, real_series: Any) -> None:
    image = nib.load(real_data / "abdomen_totalsegmentator" / "example_seg_dicom.nii.gz")
    labels = np.asarray(image.dataobj)

    def mean_hu(*ids: int) -> float:
        drawn = np.isin(labels, ids)
        region: NDArray[np.bool_] = region_on_grid(drawn, image.affine, real_series.voxels.shape, real_series.affine)
        assert region.sum() == drawn.sum()
        return float(real_series.voxels[region].mean())

    # Portal-venous CT: liver and spleen 80 to 120 HU, bone above 200, back muscle around 50; measured 89, 80, 274, 22.
    assert 70 < mean_hu(5) < 120
    assert 60 < mean_hu(1) < 130
    assert mean_hu(32, 33) > 200
    assert 0 < mean_hu(86, 87) < 80
    # Were the affines ignored, the liver's mask would lie on the table and the air behind the patient (measured: -75).
    assert real_series.voxels[labels == 5].mean() < 0
