"""Solids against distances computed the slow way; grain against its law and against a second scanner."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

from panfm.data.synthetic.shapes import Volume, balls, cover, cylinder, ellipsoid, grain, posed_frame, tube
from panfm.randomness import stream


def axes(count: int, step: float) -> tuple[Volume, Volume, Volume]:
    line = ((np.arange(count, dtype=np.float32) - (count - 1) / 2) * step).astype(np.float32)
    return line, line, line


FRAME = posed_frame(axes(14, 4.0), (10.0, -20.0, 5.0), (1.0, 2.0, -3.0), 4.0)
POINTS = np.stack([FRAME.x, FRAME.y, FRAME.z], axis=-1)


def test_posing_keeps_distances_and_moves_the_origin() -> None:
    plain = np.stack(np.meshgrid(*axes(14, 4.0), indexing="ij"), axis=-1)
    assert np.linalg.norm(POINTS, axis=-1) == pytest.approx(np.linalg.norm(plain - (1.0, 2.0, -3.0), axis=-1), abs=1e-4)
    assert np.linalg.norm(POINTS[0, 0, 0] - POINTS[13, 7, 2]) == pytest.approx(
        np.linalg.norm(plain[0, 0, 0] - plain[13, 7, 2]), abs=1e-3
    )


def test_spheres_rounds_and_balls_are_exact() -> None:
    sphere = np.linalg.norm(POINTS - (3, -4, 5), axis=-1) - 12
    assert ellipsoid(FRAME, (3, -4, 5), (12, 12, 12)) == pytest.approx(sphere, abs=1e-3)
    other = np.linalg.norm(POINTS - (-9, 0, 0), axis=-1) - 12
    assert balls(FRAME, [(3, -4, 5), (-9, 0, 0)], 12) == pytest.approx(np.minimum(sphere, other), abs=1e-3)
    round_ = np.linalg.norm(POINTS[..., :2] - (3, -4), axis=-1) - 9
    assert cylinder(FRAME, (3, -4), (9, 9)) == pytest.approx(round_, abs=1e-3)
    assert cover(FRAME, balls(FRAME, [], 12)).max() == 0


def test_an_ellipsoid_is_zero_on_its_surface_and_has_its_volume() -> None:
    fine = posed_frame(axes(48, 1.0), (30.0, 10.0, 0.0), (0.0, 0.0, 0.0), 1.0)
    volume = float(cover(fine, ellipsoid(fine, (0, 0, 0), (20, 10, 15))).sum())
    assert volume == pytest.approx(4 / 3 * np.pi * 20 * 10 * 15, rel=0.01)


def test_a_tube_is_the_nearest_of_its_points() -> None:
    start, end = np.array([-10.0, 2, 3]), np.array([12.0, -8, 6])
    along = np.linspace(0, 1, 400)[:, None]
    nearest = np.full(FRAME.shape, np.inf)
    for centre in start + along * (end - start):
        nearest = np.minimum(nearest, np.linalg.norm(POINTS - centre, axis=-1) - 4.0)
    assert tube(FRAME, (-10.0, 2, 3), (12.0, -8, 6), 4.0, 4.0) == pytest.approx(nearest, abs=0.05)


def test_grain_has_mean_0_variance_1_and_its_wavelength() -> None:
    frame = posed_frame(axes(32, 3.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 3.0)
    fields = np.stack([grain(frame, stream(0, "grain", i), 24.0) for i in range(30)])
    assert fields.dtype == np.float32
    assert fields.mean() == pytest.approx(0, abs=0.05)
    assert fields.std() == pytest.approx(1, abs=0.05)
    half_wave = (
        fields[:, :-4] * fields[:, 4:]
    ).mean()  # 12 mm apart: isotropic waves of length w give sinc(2 d / w) = 0
    quarter_wave = (fields[:, :-2] * fields[:, 2:]).mean()  # 6 mm apart: sinc(1/2) = 2 / pi
    assert half_wave == pytest.approx(0, abs=0.1)
    assert quarter_wave == pytest.approx(2 / np.pi, abs=0.1)


def test_grain_is_the_same_field_on_another_grid() -> None:
    coarse = posed_frame(axes(9, 6.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 6.0)
    fine = posed_frame(axes(17, 3.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 3.0)
    assert grain(fine, stream(0, "a"), 20.0)[::2, ::2, ::2] == pytest.approx(
        grain(coarse, stream(0, "a"), 20.0), abs=1e-4
    )
