"""Normalised intensities do not depend on the scanner's scale, and background is one value everywhere."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm.data.intensity import BACKGROUND, foreground, normalise
from panfm.errors import DataError


def _head() -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    """A bright ball in faint noise."""
    generator = np.random.default_rng(3)
    distance = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    return np.where(distance < 7, 100 + 10 * generator.standard_normal((20,) * 3), generator.random((20,) * 3)).astype(
        np.float32
    )


def test_foreground_without_a_window_is_what_is_brighter_than_air() -> None:
    distance = np.linalg.norm(np.indices((20, 20, 20)) - 9.5, axis=0)
    np.testing.assert_array_equal(foreground(_head(), None), distance < 7)


def test_a_window_includes_both_ends() -> None:
    voxels = np.array([-191, -190, -100, -30, -29], dtype=np.float32).reshape(1, 1, 5)
    assert foreground(voxels, (-190, -30)).ravel().tolist() == [False, True, True, True, False]


def test_reference_comes_out_with_mean_0_and_deviation_1() -> None:
    head = _head()
    tissue = foreground(head, None)
    scores = normalise(head, tissue, head[tissue], (0, 100))
    assert scores.dtype == np.float32
    assert scores[tissue].mean() == pytest.approx(0, abs=1e-2)  # a voxel or two lie below BACKGROUND and are cut off
    assert scores[tissue].std() == pytest.approx(1, abs=1e-2)
    assert (scores[~tissue] == BACKGROUND).all()


def test_what_lies_beyond_the_percentiles_is_clipped() -> None:
    values = np.arange(1000, dtype=np.float32).reshape(10, 10, 10)
    everywhere = np.ones_like(values, dtype=np.bool_)
    clipped = np.clip(values.astype(np.float64), *np.percentile(values, (5, 95)))
    slow = (clipped - clipped.mean()) / clipped.std()
    np.testing.assert_allclose(normalise(values, everywhere, values, (5, 95)), slow, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
def test_the_scanners_scale_does_not_matter(scale: float, offset: float) -> None:
    head = _head().astype(np.float64)
    other = (head * scale + offset * scale).astype(np.float32)
    results = []
    for voxels in (head.astype(np.float32), other):
        tissue = foreground(voxels, None)
        results.append(normalise(voxels, tissue, voxels[tissue], (0.5, 99.5)))
    np.testing.assert_allclose(results[1], results[0], atol=2e-2)


def test_nothing_lies_below_background() -> None:
    voxels = np.concatenate([[-1000.0], np.zeros(999)]).astype(np.float32).reshape(10, 10, 10)
    scores = normalise(voxels, np.ones_like(voxels, dtype=np.bool_), voxels, (0, 100))
    assert scores.min() == BACKGROUND


@pytest.mark.parametrize("reference", [np.zeros(0), np.ones(1), np.full(50, 3.0)])
def test_no_contrast_is_refused(reference: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    with pytest.raises(DataError, match="no contrast"):
        normalise(np.zeros((2, 2, 2), np.float32), np.ones((2, 2, 2), np.bool_), reference.astype(np.float32), (1, 99))
