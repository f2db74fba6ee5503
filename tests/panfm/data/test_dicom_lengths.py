"""Every encoding that pydicom writes fits into its file; a field that claims more, and a file that is cut, do not."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from panfm.data.dicom_lengths import elements_fit

SYNTAXES = {
    "explicit": ExplicitVRLittleEndian,
    "implicit": ImplicitVRLittleEndian,
    "big-endian": ExplicitVRBigEndian,
    "compressed": RLELossless,
}


def _write(path: Path, syntax: str, *, undefined_lengths: bool = False) -> Path:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID, header.PatientName = "1.2.840.10008.5.1.4.1.1.4", "1.2.3", "A^B"
    inner = Dataset()
    inner.CodeValue = "1"
    inner.ContextGroupVersion = "20200101"
    outer = Dataset()
    outer.ProcedureCodeSequence = Sequence([inner, inner])
    header.RequestAttributesSequence = Sequence([outer])
    header.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    header.add_new((0x0009, 0x1001), "OB", bytes(7) + b"\1")
    if undefined_lengths:
        header["RequestAttributesSequence"].is_undefined_length = True
        outer.is_undefined_length_sequence_item = True
    pixels = np.arange(600, dtype=np.int16).tobytes()
    compressed = syntax == "compressed"
    header.add_new(
        (0x7FE0, 0x0010),
        "OB" if compressed else "OW",
        encapsulate([pixels[:50], pixels[50:90]]) if compressed else pixels,
    )
    if compressed:
        header["PixelData"].is_undefined_length = True
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    header.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("undefined_lengths", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_encoding_fits(tmp_path: Path, syntax: str, undefined_lengths: bool) -> None:
    path = _write(tmp_path / "a.dcm", syntax, undefined_lengths=undefined_lengths)
    assert elements_fit(path)
    if syntax in ("explicit", "implicit"):  # and the same without what modern files begin with
        content = path.read_bytes()
        path.write_bytes(content[content.index(b"\x08\x00\x16\x00") :])
        assert elements_fit(path)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_cut_pixels_and_empty_files_do_not_fit(tmp_path: Path, syntax: str) -> None:
    path = _write(tmp_path / "a.dcm", syntax)
    path.write_bytes(path.read_bytes()[:-20])
    assert not elements_fit(path)
    path.write_bytes(b"")
    assert not elements_fit(path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flip=st.integers(0, 31))
def test_a_length_that_claims_gigabytes_is_seen(tmp_path: Path, flip: int) -> None:
    path = _write(tmp_path / "a.dcm", "explicit")
    content = bytearray(path.read_bytes())
    where = content.index(b"\xe0\x7f\x10\x00OW") + 8
    length = int.from_bytes(content[where : where + 4], "little") ^ (1 << flip)
    content[where : where + 4] = length.to_bytes(4, "little")
    path.write_bytes(content)
    # A shorter claim leaves pixels behind that are no elements; a longer one ends outside the file.
    assert not elements_fit(path)


def test_a_kind_that_does_not_exist_and_a_nested_claim(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.dcm", "explicit")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PN\x04\x00A^B ", b"P\x1c\x04\x00A^B "))
    assert not elements_fit(path)
    path.write_bytes(content.replace(b"SH\x02\x001 ", b"SH\xff\xff1 "))
    assert content.count(b"SH\x02\x001 ") == 2
    assert not elements_fit(path)


def test_a_deflated_file_is_left_to_the_library(tmp_path: Path) -> None:
    header = Dataset()
    header.PatientName = "A^B"
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(tmp_path / "a.dcm")
    assert elements_fit(tmp_path / "a.dcm")
