"""Every unusual or broken file has its expected verdict and the reason why in `odd_verdicts.csv`; and damage is seen.

Mutations: 5,000 seeded ones of a good file's header and bytes, as a verdict each time and never an exception. In a raw
file every field that decides what is read is either caught or, where its damage makes another sound file (an int16 that
is read as uint16, a shifted origin), told by the digest on record alone.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panfm.data.check import Verdict, check_file
from panfm.data.reading import file_digest

nib: Any = nibabel  # its types are incomplete

TABLE = Path(__file__).parent / "odd_verdicts.csv"

SHAPE = (8, 9, 7)
VOXELS = np.random.default_rng(3).integers(1, 1000, SHAPE).astype(np.int16)
AFFINE = np.array([[-2.0, 0.1, 0, 60], [0.1, 2.0, 0, -50], [0, 0, 3.0, -20], [0, 0, 0, 1]])


def _rows() -> list[dict[str, str]]:
    with TABLE.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("row", _rows(), ids=lambda row: f"{row['file']}-{row['read_as']}-{row['volume']}")
def test_odd_files_have_their_verdict(real_data: Path, row: dict[str, str]) -> None:
    volume = int(row["volume"]) if row["volume"] else None
    check = check_file(real_data / "odd" / row["file"], volume, label_map=row["read_as"] == "label_map")
    assert (check.verdict.value, " ".join(finding.code for finding in check.findings)) == (row["verdict"], row["codes"])


def test_no_odd_file_is_without_a_verdict(real_data: Path) -> None:
    odd = real_data / "odd"
    suffixes = (".nii", ".nii.gz", ".hdr", ".img", ".mgz", ".mnc")
    there = {str(path.relative_to(odd)) for path in odd.rglob("*") if path.name.endswith(suffixes)}
    assert there == {row["file"] for row in _rows()}
    assert all(row["why"] for row in _rows())


# ---- damage ---------------------------------------------------------------------------------------------------------


def _good() -> bytes:
    image = nib.Nifti1Image(VOXELS, AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(1.5, -4)
    content: bytes = image.to_bytes()
    return content


GOOD = _good()

# nifti1.h: offset, struct format, values that a healthy header never holds there for this file, and what is expected.
STRUCTURAL: dict[str, tuple[int, str, tuple[float, ...], set[str]]] = {
    "sizeof_hdr": (0, "i", (0, 347, 540, -1), {"not_nifti"}),
    "dim[0]": (40, "h", (0, 1, 2, 8, -3), {"header", "not_3d"}),
    "dim[1]": (42, "h", (0, -8, 1, 7, 9, 32767), {"empty", "too_long", "too_short", "single_slice"}),
    "dim[2]": (44, "h", (0, -9, 1, 8, 10, 32767), {"empty", "too_long", "too_short", "single_slice"}),
    "dim[3]": (46, "h", (0, -7, 1, 6, 8, 32767), {"empty", "too_long", "too_short", "single_slice"}),
    "datatype": (70, "h", (0, 1, 2, 8, 16, 32, 64, 128, 999), {"dtype", "bitpix", "colour", "complex"}),
    "bitpix": (72, "h", (0, 8, 32, -16), {"bitpix"}),
    "pixdim[1]": (80, "f", (0, -2, float("nan"), float("inf"), 4, 1), {"spacing", "spacing_differs"}),
    "pixdim[2]": (84, "f", (0, -2, float("nan"), float("inf"), 4, 1), {"spacing", "spacing_differs"}),
    "pixdim[3]": (88, "f", (0, -2, float("nan"), float("inf"), 4, 1), {"spacing", "spacing_differs"}),
    "vox_offset": (108, "f", (0, 348, 351, 352.5, 353, 1e9, float("nan"), -352), {"header", "too_short"}),
    "scl_slope": (112, "f", (float("inf"), float("-inf"), -1.5, 0), {"scaling", "slope_negative", "unscaled"}),
    "scl_inter": (116, "f", (float("inf"), float("nan")), {"scaling"}),
    "xyzt_units": (123, "b", (1, 3, 5), {"unit_unknown", "implausible_spacing"}),
    "qform_code": (252, "h", (-1, 6, 512), {"header"}),
    "sform_code": (254, "h", (-1, 6, 512), {"header"}),
    "quatern_b": (256, "f", (5.0, float("nan")), {"qform_differs"}),
    "srow_x[0]": (280, "f", (0, 2, float("nan"), 20), {"affine_singular", "orientation_conflict", "affine_not_finite"}),
    "srow_y[1]": (
        300,
        "f",
        (0, -2, float("inf"), 20),
        {"affine_singular", "orientation_conflict", "affine_not_finite"},
    ),
    "srow_z[2]": (
        320,
        "f",
        (0, -3, float("inf"), 30),
        {"affine_singular", "orientation_conflict", "affine_not_finite"},
    ),
    "srow_x[3]": (292, "f", (0, 90, float("nan")), {"qform_differs", "affine_not_finite"}),
    "magic": (344, "i", (0, 0x0031696E), {"not_nifti"}),
}


@pytest.mark.parametrize("field", STRUCTURAL)
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "gz"])
def test_damage_to_a_structural_field_is_caught(tmp_path: Path, field: str, packed: bool) -> None:
    offset, kind, values, codes = STRUCTURAL[field]
    for value in values:
        damaged = bytearray(GOOD)
        struct.pack_into(f"<{kind}", damaged, offset, value)
        path = tmp_path / ("scan.nii.gz" if packed else "scan.nii")
        path.write_bytes(gzip.compress(bytes(damaged), 1) if packed else bytes(damaged))
        found = {finding.code for finding in check_file(path).findings}
        assert found & (codes | {"gantry_tilt", "spacing_differs", "sheared"}), (field, value, found)
        assert check_file(path).verdict is not Verdict.fine


def test_the_good_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(GOOD)
    assert check_file(tmp_path / "scan.nii").findings == ()


@pytest.mark.parametrize("cut", [0, 1, 100, 347, 351, 352, 400, len(GOOD) - 1])
def test_missing_bytes_are_caught(tmp_path: Path, cut: int) -> None:
    (tmp_path / "scan.nii").write_bytes(GOOD[:cut])
    assert check_file(tmp_path / "scan.nii").verdict is Verdict.refused


def _mutations(seed: int) -> Iterator[bytes]:
    """Endless damaged copies: fields overwritten, bits flipped, pieces cut out, doubled or set to one value."""
    random = np.random.default_rng(seed)
    while True:
        damaged = bytearray(GOOD)
        for _ in range(int(random.integers(1, 4))):
            kind, place = random.integers(5), int(random.integers(min(len(damaged), 352)))
            if kind == 0:
                damaged[place] ^= 1 << int(random.integers(8))
            elif kind == 1:
                offset, fmt, values, _ = list(STRUCTURAL.values())[random.integers(len(STRUCTURAL))]
                struct.pack_into(f"<{fmt}", damaged, offset, random.choice(np.array(values)).astype(fmt).item())
            elif kind == 2:
                length = int(random.integers(1, 9))
                damaged[place : place + length] = random.integers(256, size=length, dtype=np.uint8).tobytes()
            elif kind == 3:
                del damaged[int(random.integers(352, len(damaged))) :]
                damaged.extend(bytes(max(0, 352 - len(damaged))))
            else:
                damaged.extend(random.integers(256, size=int(random.integers(1, 2000)), dtype=np.uint8).tobytes())
        yield bytes(damaged)


def _judge(path: Path, count: int, seed: int) -> dict[Verdict, int]:
    """Verdicts on so many mutations; where one reads as fine, the digest must differ from the good file's."""
    path.write_bytes(GOOD)
    record = file_digest(path)
    verdicts = dict.fromkeys(Verdict, 0)
    for _, content in zip(range(count), _mutations(seed), strict=False):
        path.write_bytes(content)
        verdict = check_file(path).verdict
        verdicts[verdict] += 1
        assert verdict is not Verdict.fine or content == GOOD or file_digest(path) != record
    return verdicts


def test_mutations_get_a_verdict(tmp_path: Path) -> None:
    verdicts = _judge(tmp_path / "scan.nii", 300, seed=1)
    assert sum(verdicts.values()) == 300
    assert min(verdicts.values()) > 0


@pytest.mark.slow
def test_thousands_of_mutations_get_a_verdict(tmp_path: Path) -> None:
    verdicts = _judge(tmp_path / "scan.nii", 5000, seed=0)
    assert verdicts[Verdict.refused] > 2500


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 351), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
def test_any_header_gets_a_verdict(tmp_path: Path, edits: list[tuple[int, bytes]]) -> None:
    damaged = bytearray(GOOD)
    for place, content in edits:
        damaged[place : place + len(content)] = content
    (tmp_path / "scan.nii").write_bytes(bytes(damaged))
    assert check_file(tmp_path / "scan.nii").verdict in Verdict
    assert check_file(tmp_path / "scan.nii", label_map=True).verdict in Verdict


def _flips(whole: bytes) -> Iterator[bytes]:
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        yield bytes(damaged)


def test_every_damaged_byte_of_a_gzip_is_caught(tmp_path: Path) -> None:
    """Or it changed nothing: the gzip header's time, or another code of the compressor for the same bytes."""
    path, whole = tmp_path / "scan.nii.gz", gzip.compress(GOOD, mtime=0)
    caught = 0
    for damaged in _flips(whole):
        path.write_bytes(damaged)
        if check_file(path).verdict is Verdict.refused:
            caught += 1
        else:
            assert gzip.decompress(damaged) == GOOD
    assert caught >= len(whole) - 12
