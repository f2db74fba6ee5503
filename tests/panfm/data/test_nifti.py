"""What is read agrees with nibabel; what cannot be a scan is refused in one line that names the file."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gzip
import hashlib
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panfm.data.reading import read_label_map, read_scan
from panfm.errors import DataError

nib: Any = nibabel  # its types are incomplete

VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
OBLIQUE = np.array([[0, 0, 3.0, 10], [-1.5, 0.2, 0, 20], [0.2, 1.5, 0, -30], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u1", ">f4", "<f8", "<i4"])
def test_reads_what_nibabel_reads(tmp_path: Path, suffix: str, image_class: Any, dtype: str) -> None:
    path = tmp_path / f"scan{suffix}"
    header = image_class.header_class(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(np.dtype(dtype))
    image_class(VOXELS[..., None], OBLIQUE, header).to_filename(path)
    scan, oracle = read_scan(path), nib.load(path)
    np.testing.assert_array_equal(scan.voxels, oracle.get_fdata()[..., 0])
    np.testing.assert_array_equal(scan.affine, oracle.affine)
    assert scan.voxels.dtype == np.float32
    assert scan.spacing_mm == pytest.approx(nib.affines.voxel_sizes(OBLIQUE))
    assert scan.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_scaling_is_applied_as_nibabel_does(tmp_path: Path) -> None:
    path = tmp_path / "scaled.nii"
    image = nib.Nifti1Image(VOXELS, OBLIQUE)
    image.header.set_slope_inter(0.25, -100)
    image.to_filename(path)
    np.testing.assert_allclose(read_scan(path).voxels, nib.load(path).get_fdata(), rtol=1e-6)


def _edit(offset: int, fmt: str, *values: float) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(f"<{fmt}", changed, offset, *values)
        return bytes(changed)

    return edit


# Byte offsets as in nifti1.h: dim 40, datatype 70, bitpix 72, pixdim 76, vox_offset 108, scl_slope 112, srow_x 280.
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda content: content[:200], "not_nifti"),
        (lambda content: b"subject,age\n" + content, "not_nifti"),
        (lambda content: content[:344] + b"ni1\0" + content[348:], "not_nifti"),
        (lambda content: content[:-1], "too_short"),
        (_edit(42, "hhh", 512, 512, 300), "too_short"),
        (_edit(42, "hhh", 32767, 32767, 32767), "too_short"),
        (_edit(40, "h", 8), "header"),
        (_edit(42, "h", 0), "empty"),
        (_edit(42, "h", -4), "empty"),
        (_edit(40, "hhhhh", 4, 4, 5, 3, 2), "not_3d"),
        (_edit(40, "h", 2), "not_3d"),
        (_edit(70, "hh", 128, 24), "colour"),
        (_edit(70, "hh", 32, 64), "complex"),
        (_edit(70, "hh", 999, 16), "dtype"),
        (_edit(80, "f", 0.0), "spacing"),
        (_edit(80, "f", float("nan")), "spacing"),
        (lambda content: content + bytes(500), "too_long"),
        (_edit(40, "hhhh", 3, 4, 5, 5), "too_long"),
        (_edit(72, "h", 8), "bitpix"),
        (_edit(252, "hh", 0, 0), "no_orientation"),
        (_edit(254, "h", 9), "header"),
        (_edit(123, "b", 3), "implausible_spacing"),
        (_edit(348, "b", 1), "header"),
        (_edit(108, "f", 1e9), "too_short"),
        (_edit(108, "f", float("nan")), "header"),
        (_edit(108, "f", 0.0), "header"),
        (_edit(112, "ff", float("inf"), 0.0), "scaling"),
        (_edit(280, "f", float("nan")), "affine_not_finite"),
        (_edit(280, "ffffffffffff", *[0.0] * 12), "affine_singular"),
        (lambda content: content[:352] + bytes(240), "constant"),
    ],
)
def test_refuses_with_a_code(
    tmp_path: Path, write_scan: Callable[..., Path], edit: Callable[[bytes], bytes], code: str
) -> None:
    path = write_scan(tmp_path / "scan.nii", VOXELS, OBLIQUE)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^scan\.nii: .* \[{code}\]$"):
        read_scan(path)
    with gzip.open(tmp_path / "scan.nii.gz", "wb") as stream:
        stream.write(path.read_bytes())
    with pytest.raises(DataError, match=rf"^scan\.nii\.gz: .* \[{code}\]$"):
        read_scan(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_refuses_what_is_not_finite_in_float32(tmp_path: Path, write_scan: Callable[..., Path], value: float) -> None:
    voxels = VOXELS.astype(np.float64)
    voxels[0, 0, 0] = value
    with pytest.raises(DataError, match="not_finite"):
        read_scan(write_scan(tmp_path / "scan.nii.gz", voxels))


def test_a_label_map_may_be_constant_but_not_broken(tmp_path: Path, write_scan: Callable[..., Path]) -> None:
    ones = np.ones((2, 3, 4), dtype=np.uint8)
    assert (read_label_map(write_scan(tmp_path / "ones.nii", ones)).voxels == 1).all()
    with pytest.raises(DataError, match="not_finite"):
        read_label_map(write_scan(tmp_path / "nan.nii", ones * np.float32(np.nan)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.nii: cannot be read"):
        read_scan(tmp_path / "none.nii")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_gzip_is_never_taken_for_another_scan(tmp_path: Path, place: float, flip: int) -> None:
    path = tmp_path / "scan.nii.gz"
    whole = gzip.compress(nib.Nifti1Image(VOXELS, OBLIQUE).to_bytes(), mtime=0)
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= flip
    path.write_bytes(bytes(damaged))
    try:
        scan = read_scan(path)
    except DataError:
        return
    # The gzip header's time, flags and operating system lie outside the checksum, and change nothing.
    np.testing.assert_array_equal(scan.voxels, VOXELS)
    np.testing.assert_allclose(scan.affine, OBLIQUE, atol=1e-5)


def test_a_volume_of_four_dimensions_is_read_alone(tmp_path: Path, write_scan: Callable[..., Path]) -> None:
    series = np.stack([VOXELS + 1000 * time for time in range(3)], axis=-1)
    for suffix in (".nii", ".nii.gz"):
        path = write_scan(tmp_path / f"cine{suffix}", series, OBLIQUE)
        scan = read_scan(path, volume=2)
        np.testing.assert_array_equal(scan.voxels, VOXELS + 2000)
        assert [finding.code for finding in scan.repairs] == ["volume_chosen"]
        with pytest.raises(DataError, match="no_such_volume"):
            read_scan(path, volume=3)
        with pytest.raises(DataError, match="not_3d"):
            read_scan(path)


# Byte offsets as above; pixdim[0] (qfac) 76, qform_code 252, quatern_b 256, qoffset_x 268.
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda content: content + bytes(7), "trailing_bytes"),
        (_edit(80, "f", 7.0), "spacing_differs"),
        (_edit(112, "ff", 0.0, 5.0), "unscaled"),
        (_edit(112, "ff", -2.0, 0.0), "slope_negative"),
        (_edit(268, "f", 500.0), "qform_differs"),
        (_edit(256, "f", 3.0), "qform_differs"),
        (_edit(123, "b", 5), "unit_unknown"),
    ],
)
def test_repairs_with_a_code(
    tmp_path: Path, write_scan: Callable[..., Path], edit: Callable[[bytes], bytes], code: str
) -> None:
    upright = np.diag([1.0, 1.5, 2.0, 1.0])
    path = write_scan(tmp_path / "scan.nii", VOXELS, upright)
    image = nib.load(path)
    image.set_qform(upright, code=1)
    path.write_bytes(edit(image.to_bytes()))
    scan = read_scan(path)
    # The qform takes its spacing from the list, so where that is wrong, both findings are right.
    assert {finding.code for finding in scan.repairs} - {"qform_differs"} == {code} - {"qform_differs"}
    assert code in {finding.code for finding in scan.repairs}
    np.testing.assert_allclose(scan.affine, upright)


def test_micrometres_and_metres_become_millimetres(tmp_path: Path, write_scan: Callable[..., Path]) -> None:
    for unit, factor in (("micron", 1e3), ("meter", 1e-3)):
        path = write_scan(tmp_path / "scan.nii", VOXELS, np.diag([2 * factor, 2 * factor, 3 * factor, 1]))
        image = nib.load(path)
        image.header.set_xyzt_units(unit)
        path.write_bytes(image.to_bytes())
        scan = read_scan(path)
        assert [finding.code for finding in scan.repairs] == ["unit_converted"]
        np.testing.assert_allclose(scan.affine, np.diag([2, 2, 3, 1]), rtol=1e-6)


def test_a_qform_counts_where_there_is_no_sform(tmp_path: Path) -> None:
    turned = nib.affines.from_matvec(np.array([[0, -2.0, 0], [2.0, 0, 0], [0, 0, 2.0]]), [5, 6, 7])
    image = nib.Nifti1Image(VOXELS, None)
    image.set_qform(turned, code=1)
    for qfac in (1, 0):  # nifti1.h: 0 means 1
        content = bytearray(image.to_bytes())
        struct.pack_into("<f", content, 76, qfac)
        struct.pack_into("<h", content, 254, 0)
        (tmp_path / "scan.nii").write_bytes(bytes(content))
        scan = read_scan(tmp_path / "scan.nii")
        np.testing.assert_allclose(scan.affine, turned, atol=1e-5)
        assert scan.repairs == ()


_PEAK = """
import resource, sys
from pathlib import Path
from panfm.data.reading import read_scan
from panfm.errors import ScanError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        read_scan(Path(name))
    except ScanError as error:
        print(error.code)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def _peak_bytes(*paths: Path) -> tuple[list[str], int]:
    """Codes of what was refused, and how far the process grew, by the operating system's count."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *map(str, paths)], capture_output=True, text=True, check=True)
    *codes, grown = done.stdout.split()
    return codes, int(grown)


def test_a_claim_that_is_not_kept_costs_no_memory(tmp_path: Path, write_scan: Callable[..., Path]) -> None:
    path = write_scan(tmp_path / "claims.nii", VOXELS, OBLIQUE)
    path.write_bytes(_edit(42, "hhh", 512, 512, 300)(path.read_bytes()).ljust(18784, b"\1"))
    # Compressed, 150 kB could hold what the header claims: only reading on tells that they do not.
    noise = np.random.default_rng(0).integers(256, size=150_000, dtype=np.uint8).tobytes()
    packed = tmp_path / "claims.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()[:352] + noise))
    codes, grown = _peak_bytes(path, packed)
    assert codes == ["too_short", "too_short"]
    assert grown < 10e6  # 157 MB were claimed


def test_no_more_memory_than_one_scan(tmp_path: Path) -> None:
    side = 128
    voxels = np.random.default_rng(0).integers(-1000, 1000, (side, side, side)).astype(np.int16)
    image = nib.Nifti1Image(np.stack([voxels] * 4, axis=-1), np.diag([1.0, 1.0, 1.0, 1.0]))
    image.header.set_slope_inter(0.5, 3)
    image.to_filename(tmp_path / "cine.nii.gz")
    code = _PEAK.replace("read_scan(Path(name))", "read_scan(Path(name), 1)")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "cine.nii.gz")], capture_output=True, text=True, check=True
    )
    stored, scaled = 2 * side**3, 4 * side**3
    assert int(done.stdout) < 1.5 * (stored + scaled)
