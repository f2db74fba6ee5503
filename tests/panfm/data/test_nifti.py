"""What is read agrees with nibabel; what cannot be a scan is refused in one line that names the file."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panfm.data.nifti import read_label_map, read_scan
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


# Why each is refused stands in its code; the others load, and later checks may say more about them.
ODD_REFUSED = {
    "derived_bad/all_nan.nii.gz": "not_finite",
    "derived_bad/bad_sizeof_hdr.nii": "not_nifti",
    "derived_bad/constant.nii.gz": "constant",
    "derived_bad/dim2d.nii.gz": "not_3d",
    "derived_bad/dim4d_t0_first.nii.gz": "not_3d",
    "derived_bad/dim_zero.nii": "empty",
    "derived_bad/dims_claim_more_data.nii": "too_short",
    "derived_bad/dtype_rgb24.nii.gz": "colour",
    "derived_bad/dtype_rgba32.nii.gz": "colour",
    "derived_bad/float128_datatype.nii": "dtype",
    "derived_bad/gz_of_text.nii.gz": "not_nifti",
    "derived_bad/ndim_8.nii": "header",
    "derived_bad/one_voxel.nii.gz": "constant",
    "derived_bad/pair.hdr": "not_nifti",
    "derived_bad/plain_nii_named_gz.nii.gz": "gzip",
    "derived_bad/sform_nan.nii": "affine_not_finite",
    "derived_bad/short_header.nii": "not_nifti",
    "derived_bad/slope_inf.nii": "scaling",
    "derived_bad/text_named_nii.nii": "not_nifti",
    "derived_bad/truncated_gz.nii.gz": "gzip",
    "derived_bad/truncated_plain.nii": "too_short",
    "derived_bad/unknown_datatype.nii": "dtype",
    "derived_bad/vox_offset_huge.nii": "too_short",
    "nibabel/example4d.nii.gz": "not_3d",
    "nibabel/test.mgz": "not_nifti",
    "niivue/complex.nii.gz": "complex",
}
ODD_READ = (
    "derived_bad/good_ref.nii.gz",
    "derived_bad/dim4d_singleton.nii.gz",
    "derived_bad/dtype_int8.nii.gz",
    "nibabel/anatomical.nii",
    "niivue/orient/PIR.nii.gz",
)


@pytest.mark.parametrize(("name", "code"), list(ODD_REFUSED.items()))
def test_odd_files_are_refused(real_data: Path, name: str, code: str) -> None:
    with pytest.raises(DataError, match=rf"\[{code}\]$"):
        read_scan(real_data / "odd" / name)


@pytest.mark.parametrize("name", ODD_READ)
def test_sound_files_among_the_odd_are_read(real_data: Path, name: str) -> None:
    oracle = nib.load(real_data / "odd" / name)
    np.testing.assert_allclose(read_scan(real_data / "odd" / name).voxels, oracle.get_fdata().squeeze(), rtol=1e-6)
