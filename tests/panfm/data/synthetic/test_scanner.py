"""The scanners: functions of seed and name, correct affines in every axis order, noise with the law it claims."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from panfm.data.synthetic.scanner import (
    AXIS_CODES,
    MARGIN_VOXELS,
    Sampling,
    Scanner,
    acquire,
    recommended_grids,
    sampling_of,
    scanner_of,
    stored_image,
)
from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream

NIBABEL: Any = nib  # its functions carry no types
PLAIN = Scanner("plain", "RAS", 1.0, 1.0, 1.0, 1000.0, (0.0,) * 6, 0.0)


def axis_codes(image: Any) -> str:
    return "".join(NIBABEL.aff2axcodes(image.affine))


def test_a_scanner_is_a_function_of_seed_and_name() -> None:
    assert scanner_of(1, "north") == scanner_of(1, "north")
    assert scanner_of(1, "north") != replace(scanner_of(1, "south"), name="north")
    assert scanner_of(1, "north") != scanner_of(2, "north")


def test_scanners_differ_in_axis_order_and_slices() -> None:
    scanners = [scanner_of(0, f"site {k}") for k in range(40)]
    assert {scanner.axis_codes for scanner in scanners} == set(AXIS_CODES)
    assert {scanner.slice_factor for scanner in scanners} == {1.0, 1.5, 2.0}


@pytest.mark.parametrize("codes", AXIS_CODES)
def test_reoriented_to_ras_the_image_is_the_one_that_was_sampled(codes: str) -> None:
    values = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    sampling = Sampling((1.0, 2.0, 3.0), (4, 5, 6), 2, 1)
    image: Any = stored_image(replace(PLAIN, axis_codes=codes), sampling, values, (10.0, -20.0, 30.0))
    assert axis_codes(image) == codes
    back: Any = NIBABEL.as_closest_canonical(image)
    assert np.array_equal(np.asarray(back.dataobj), values)
    assert back.header.get_zooms() == (1.0, 2.0, 3.0)
    middle = back.affine @ [1.5, 2.0, 2.5, 1.0]
    assert middle[:3] == pytest.approx([10.0, -20.0, 30.0])


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_every_scan_covers_the_grid_and_its_margin(organ: str) -> None:
    for number in range(12):
        grid = recommended_grids(32)[organ]
        sampling = sampling_of(scanner_of(7, f"site {number}"), grid)
        for count, step, side, nominal in zip(
            sampling.shape, sampling.spacing_mm, grid.shape, grid.spacing_mm, strict=True
        ):
            assert count * step >= (side + MARGIN_VOXELS) * nominal - 1e-6


def test_a_thick_slice_is_the_mean_of_its_slabs() -> None:
    sampling = Sampling((1.0, 4.0, 1.0), (2, 3, 2), 1, 2)
    assert sampling.axes_mm()[1] == pytest.approx([-5, -3, -1, 1, 3, 5])
    slabs = stream(0, "slabs").random((2, 6, 2), dtype=np.float32)
    merged = sampling.merge_slabs(slabs)
    assert merged.shape == sampling.shape
    assert merged[:, 1] == pytest.approx((slabs[:, 2] + slabs[:, 3]) / 2)


def test_background_noise_is_rayleigh_and_gain_scales_it() -> None:
    air = np.zeros((40, 40, 40), np.float32)
    scan = acquire(replace(PLAIN, noise=0.05, gain=20_000.0), air, stream(0, "air")).astype(float)
    # A Rayleigh law: mean over standard deviation is sqrt(pi / (4 - pi)), whatever the gain.
    assert scan.mean() / scan.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.02)
    assert scan.mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2) * 20_000, rel=0.5)  # the scan's own gain: 10 % (SD)


def test_contrast_and_shading_act_as_declared() -> None:
    tissue = np.full((9, 9, 9), 0.5, np.float32)
    tissue[4, 4, 4] = 1.0
    flat = acquire(replace(PLAIN, gamma=2.0), tissue, stream(0, "scan")).astype(float)
    assert flat[4, 4, 4] / flat[0, 0, 0] == pytest.approx(4.0, rel=0.02)
    shaded = acquire(replace(PLAIN, bias=(0.2, 0, 0, 0, 0, 0)), np.ones_like(tissue), stream(0, "scan")).astype(float)
    assert np.log(shaded[8, 0, 0] / shaded[0, 0, 0]) == pytest.approx(0.4, abs=0.02)


def test_grids_have_the_asked_shape_and_the_same_extent() -> None:
    small, large = recommended_grids(24), recommended_grids(48)
    assert tuple(small) == SEVEN_ORGANS
    for organ in SEVEN_ORGANS:
        assert small[organ].shape == [24, 24, 24]
        assert small[organ].spacing_mm == pytest.approx([2 * step for step in large[organ].spacing_mm])
