"""Each check finds its own fault and nothing in what is sound."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import numpy as np
import pytest

from panfm.data import quality


def _codes(findings: tuple[quality.Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.mark.parametrize(
    ("shape", "codes"),
    [
        ((4, 5, 6), []),
        ((4, 5, 6, 1), []),
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
