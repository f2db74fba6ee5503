"""Each check finds its own fault and nothing in what is sound."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.data import quality
from panfm.errors import ScanError


def _codes(findings: tuple[quality.Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("shape", "codes"),
    [
        ((4, 5, 6), []),
        ((4, 5, 6, 1), ["singletons"]),
        ((4, 5, 6, 1, 1), ["singletons"]),
        ((4, 5, 6, 1, 3), ["not_3d"]),
        ((4, 5, 1), []),
        ((4, 5), ["not_3d"]),
        ((4, 5, 6, 2), ["not_3d"]),
        ((1, 4, 5, 6), ["not_3d"]),
        ((4, 0, 6), ["empty"]),
        ((4, -5, 6), ["empty"]),
    ],
)
def test_shape(shape: tuple[int, ...], codes: list[str]) -> None:
    assert _codes(quality.shape_findings(shape)) == codes


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [
        (np.dtype(np.int16), []),
        (np.dtype(">f4"), []),
        (np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]), ["colour"]),
        (np.dtype(np.complex64), ["complex"]),
        (np.dtype("V0"), ["dtype"]),
    ],
)
def test_dtype(dtype: np.dtype[np.generic], codes: list[str]) -> None:
    assert _codes(quality.dtype_findings(dtype)) == codes


def test_affine() -> None:
    sound = np.diag([0.001, 2.0, 3.0, 1.0])
    flat, lost = sound.copy(), sound.copy()
    flat[:3, 1] = flat[:3, 0]
    lost[0, 3] = math.nan
    assert _codes(quality.affine_findings(sound)) == []
    assert _codes(quality.affine_findings(flat)) == ["affine_singular"]
    assert _codes(quality.affine_findings(np.zeros((4, 4)))) == ["affine_singular"]
    assert _codes(quality.affine_findings(lost)) == ["affine_not_finite"]


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_spacing(step: float) -> None:
    assert _codes(quality.spacing_findings((1.0, 2.0, 3.0))) == []
    assert _codes(quality.spacing_findings((1.0, step, 3.0))) == ["spacing"]


def test_size_is_inclusive() -> None:
    assert _codes(quality.size_findings(10, 10)) == []
    assert _codes(quality.size_findings(11, 10)) == ["too_short"]


@pytest.mark.parametrize(
    ("slope", "intercept", "codes"),
    [
        (1.0, 0.0, []),
        (0.0, math.nan, []),
        (math.nan, math.nan, []),
        (math.inf, 0.0, ["scaling"]),
        (2.0, math.nan, ["scaling"]),
    ],
)
def test_scaling(slope: float, intercept: float, codes: list[str]) -> None:
    assert _codes(quality.scaling_findings(slope, intercept)) == codes


def test_content() -> None:
    voxels = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    assert _codes(quality.content_findings(voxels)) == []
    assert _codes(quality.content_findings(np.full_like(voxels, 7))) == ["constant"]
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = voxels.copy()
        spoilt[1, 0, 1] = bad
        assert _codes(quality.content_findings(spoilt)) == ["not_finite"]


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_repairs_are_kept_and_refusals_raised() -> None:
    mended = quality.Finding("mended", "was mended", quality.Severity.repaired)
    assert quality.kept("scan.nii", [mended, mended]) == (mended, mended)
    with pytest.raises(ScanError, match=r"^scan\.nii: broken, mend it \[broken\]$") as raised:
        quality.kept("scan.nii", [mended, quality.Finding("broken", "broken, mend it")])
    assert raised.value.code == "broken"


# ---- one file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "volume", "codes"),
    [
        ((4, 5, 6, 3), 0, ["volume_chosen"]),
        ((4, 5, 6, 3), 2, ["volume_chosen"]),
        ((4, 5, 6, 3), 3, ["no_such_volume"]),
        ((4, 5, 6, 3), -1, ["no_such_volume"]),
        ((4, 5, 6), 0, []),
        ((4, 5, 6), 1, ["no_such_volume"]),
        ((4, 5, 6, 1, 3), 0, ["not_3d"]),
        ((4, 5, 6, 2, 3), 0, ["not_3d"]),
    ],
)
def test_chosen_volume(shape: tuple[int, ...], volume: int, codes: list[str]) -> None:
    assert _codes(quality.shape_findings(shape, volume)) == codes


@pytest.mark.parametrize(
    ("shape", "codes"),
    [((4, 4, 4), []), ((9, 1, 9), ["single_slice"]), ((9, 9, 3), ["too_small"]), ((1, 1, 1), ["too_small"])],
)
def test_thin(shape: tuple[int, ...], codes: list[str]) -> None:
    assert _codes(quality.thin_findings(shape)) == codes


def test_bits() -> None:
    assert _codes(quality.bits_findings(np.dtype(np.int16), 16)) == []
    assert _codes(quality.bits_findings(np.dtype(np.int16), 8)) == ["bitpix"]


@given(
    shape=st.tuples(*[st.integers(2, 40)] * 3),
    axis=st.integers(0, 2),
    voxel_bytes=st.sampled_from([1, 2, 4, 8]),
    data=st.data(),
)
def test_an_axis_that_lost_layers_is_never_taken_for_padding(
    shape: tuple[int, int, int], axis: int, voxel_bytes: int, data: st.DataObject
) -> None:
    damaged = list(shape)
    damaged[axis] = data.draw(st.integers(1, shape[axis] - 1))
    extra = (math.prod(shape) - math.prod(damaged)) * voxel_bytes
    assert _codes(quality.trailing_findings(damaged, voxel_bytes, extra)) == ["too_long"]


def test_trailing() -> None:
    assert _codes(quality.trailing_findings((8, 9, 10), 2, 0)) == []
    assert _codes(quality.trailing_findings((8, 9, 10), 2, 143)) == ["trailing_bytes"]
    assert _codes(quality.trailing_findings((8, 9, 10), 2, 144)) == ["too_long"]


def test_orientation() -> None:
    upright = np.diag([2.0, 2.0, 2.0, 1.0])
    mirrored, shifted, close = (upright.copy() for _ in range(3))
    mirrored[0, 0] *= -1
    shifted[0, 3] = 1.1
    close[0, 3] = 0.9
    shape = (10, 10, 10)
    lost = np.full((4, 4), math.nan)
    assert _codes(quality.orientation_findings(None, None, shape)) == ["no_orientation"]
    assert _codes(quality.orientation_findings(upright, None, shape)) == []
    assert _codes(quality.orientation_findings(None, upright, shape)) == []
    assert _codes(quality.orientation_findings(upright, close, shape)) == []
    assert _codes(quality.orientation_findings(upright, shifted, shape)) == ["qform_differs"]
    assert _codes(quality.orientation_findings(upright, lost, shape)) == ["qform_differs"]
    assert _codes(quality.orientation_findings(upright, mirrored, shape)) == ["orientation_conflict"]


@pytest.mark.parametrize(
    ("shape", "spacing", "codes"),
    [
        ((512, 512, 300), (0.5, 0.5, 3.0), []),
        ((64, 64, 10), (3.0, 3.0, 10.0), []),
        ((64, 64, 64), (0.003, 0.003, 0.003), ["implausible_spacing"]),
        ((64, 64, 64), (1000.0, 1000.0, 3000.0), ["implausible_spacing"]),
        ((2000, 64, 64), (2.0, 2.0, 2.0), ["implausible_spacing"]),
    ],
)
def test_plausibility(shape: tuple[int, ...], spacing: tuple[float, ...], codes: list[str]) -> None:
    assert _codes(quality.plausibility_findings(shape, spacing)) == codes


def test_units() -> None:
    assert [_codes(quality.unit_findings(code)) for code in (0, 2)] == [[], []]
    assert [_codes(quality.unit_findings(code)) for code in (1, 3)] == [["unit_converted"]] * 2
    assert _codes(quality.unit_findings(5)) == ["unit_unknown"]
    assert [quality.unit_factor(code) for code in (0, 1, 2, 3, 5)] == [1, 1000, 1, 0.001, 1]


@given(degrees=st.floats(-80, 80), spacing=st.tuples(*[st.floats(0.1, 9)] * 3))
def test_tilt_is_measured_whatever_the_spacing(degrees: float, spacing: tuple[float, float, float]) -> None:
    shear = np.eye(4)
    shear[1, 2], shear[2, 2] = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    assert quality.tilt_deg(shear @ np.diag([*spacing, 1])) == pytest.approx(abs(degrees), abs=1e-5)


def test_shear() -> None:
    def tilted(degrees: float) -> list[str]:
        affine = np.eye(4)
        affine[1, 2] = math.tan(math.radians(degrees))
        return _codes(quality.shear_findings(affine))

    assert [tilted(degrees) for degrees in (0, 0.05, 18, -30, 60)] == [
        [],
        [],
        ["gantry_tilt"],
        ["gantry_tilt"],
        ["sheared"],
    ]


def test_two_values_look_like_a_mask() -> None:
    voxels = np.zeros((4, 4, 4), dtype=np.float32)
    voxels[1] = 7
    assert _codes(quality.content_findings(voxels)) == ["two_values"]
    voxels[2] = 8
    assert _codes(quality.content_findings(voxels)) == []


def test_labels_are_whole_numbers() -> None:
    labels = np.zeros((2, 2, 2), dtype=np.float32)
    assert _codes(quality.label_findings(labels)) == []
    labels[0, 0, 0] = 0.5
    assert _codes(quality.label_findings(labels)) == ["not_labels"]
    labels[0, 0, 0] = np.inf
    assert _codes(quality.label_findings(labels)) == ["not_finite"]


# ---- a scan and its label map ---------------------------------------------------------------------------------------


def test_grids() -> None:
    shape, affine = (10, 12, 14), np.diag([2.0, 2.0, 2.0, 1.0])

    def codes(changed: dict[tuple[int, int], float], map_shape: tuple[int, int, int] = shape) -> list[str]:
        map_affine = affine.copy()
        for place, value in changed.items():
            map_affine[place] = value
        return _codes(quality.grid_findings(map_shape, map_affine, shape, affine))

    assert codes({}) == []
    assert codes({(0, 3): 2.0}) == ["label_map_resampled"]
    assert codes({(0, 0): -2.0, (0, 3): 18.0}) == ["label_map_resampled"]  # the same place, stored from the other side
    assert codes({(0, 0): -2.0, (0, 3): 8.0}) == ["label_map_mirrored"]
    assert codes({(0, 0): -2.0}) == ["label_map_mirrored"]  # touches the scan in one layer
    assert codes({(0, 0): -2.0, (0, 3): -2.0}) == ["label_map_outside"]
    assert codes({(2, 3): 400.0}) == ["label_map_outside"]
    assert codes({}, (5, 6, 7)) == ["label_map_resampled"]


def test_organs() -> None:
    assert [_codes(quality.organ_findings("liver", n)) for n in (0, 1, 2)] == [["organ_empty"], ["organ_one_voxel"], []]
    assert [_codes(quality.overlap_findings("liver", share)) for share in (0, 0.5, 0.96, 1)] == [
        ["organ_outside"],
        ["organ_cut"],
        [],
        [],
    ]


def test_sides() -> None:
    assert _codes(quality.side_findings([120.0, 150.0])) == []
    assert _codes(quality.side_findings([-120.0, -150.0])) == ["left_right"]
    assert _codes(quality.side_findings([-120.0, 150.0])) == []  # odd anatomy, not a mirror
