"""The organs: they fit their grids, and measuring them in the picture gives back the causes, as far as stated."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from panfm.data.synthetic.anatomy import EXTENT_MM, PAINTERS
from panfm.data.synthetic.factors import FACTORS, draw_factors
from panfm.data.synthetic.scanner import recommended_grids
from panfm.data.synthetic.shapes import Frame, Point, Volume, posed_frame
from panfm.data.synthetic.traits import DRAWN_LIMIT, draw_traits, traits_of
from panfm.data.synthetic.writer import draw_body
from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream

SUBJECTS = 160


def nominal_frame(organ: str, turn_deg: Point, shift_mm: Point, voxels: int = 24) -> Frame:
    spacing = recommended_grids(voxels)[organ].spacing_mm
    x, y, z = (((np.arange(voxels) - (voxels - 1) / 2) * step).astype(np.float32) for step in spacing)
    return posed_frame((x, y, z), turn_deg, shift_mm, float(np.mean(spacing)))


@cache
def bodies(organ: str) -> NDArray[np.float32]:
    """Noise-free organs of subjects drawn as the writer draws them, (n, 24, 24, 24)."""
    return np.stack(
        [
            draw_body(8, i, organ, lambda turn, shift: nominal_frame(organ, turn, shift), draw_factors(8, i))
            for i in range(SUBJECTS)
        ]
    )


@cache
def factor(name: str) -> NDArray[np.float64]:
    return np.array([draw_factors(8, i).values[FACTORS.index(name)] for i in range(SUBJECTS)])


def trait(organ: str, name: str) -> NDArray[np.float64]:
    return np.array([draw_traits(8, i, organ, draw_factors(8, i))[name] for i in range(SUBJECTS)])


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return float(np.corrcoef(a, b)[0, 1])


def painted(organ: str, traits: dict[str, float], frame: Frame | None = None) -> Volume:
    still = nominal_frame(organ, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 32)
    return PAINTERS[organ](frame or still, {t.name: 0.0 for t in traits_of(organ)} | traits, stream(0, "one body"))


def volume_of(organ: str) -> NDArray[np.float64]:
    """Share of the grid that is organ: brighter than a tenth, or, in the pancreas, than its bed."""
    share: NDArray[np.float64] = (bodies(organ) > (0.4 if organ == "pancreas" else 0.1)).mean(axis=(1, 2, 3))
    return share


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_pictures_are_finite_float32_in_0_to_1_point_2(organ: str) -> None:
    assert bodies(organ).dtype == np.float32
    assert np.isfinite(bodies(organ)).all()
    assert bodies(organ).min() >= 0
    assert bodies(organ).max() <= 1.25


@pytest.mark.parametrize("organ", [organ for organ in SEVEN_ORGANS if organ not in ("heart", "adipose")])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_largest_organ_stays_off_the_borders(organ: str, sign: float) -> None:
    image = painted(organ, {t.name: sign * DRAWN_LIMIT for t in traits_of(organ)} | {"size": DRAWN_LIMIT})
    assert max(float(image.take(end, axis).max()) for axis in range(3) for end in (0, -1)) < 0.3


def test_the_slab_of_abdomen_meets_only_the_ends_of_z_and_the_aorta_those_of_the_heart() -> None:
    for organ in ("adipose", "heart"):
        image = painted(organ, {t.name: DRAWN_LIMIT for t in traits_of(organ)})
        assert max(float(image.take(end, axis).max()) for axis in (0, 1) for end in (0, -1)) < 0.3


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_every_trait_is_visible(organ: str) -> None:
    for name in (t.name for t in traits_of(organ)):
        difference = np.abs(painted(organ, {name: 1.5}) - painted(organ, {name: -1.5}))
        assert difference.max() > 0.02, name


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_two_scanners_sample_the_same_body(organ: str) -> None:
    fine = nominal_frame(organ, (2.0, 1.0, 0.0), (1.0, 0.0, 0.0), 31)
    coarse = Frame(
        fine.x[::2, ::2, ::2],
        fine.y[::2, ::2, ::2],
        fine.z[::2, ::2, ::2],
        (fine.axes_mm[0][::2], fine.axes_mm[1][::2], fine.axes_mm[2][::2]),
        fine.edge_mm,
    )
    assert painted(organ, {}, fine)[::2, ::2, ::2] == pytest.approx(painted(organ, {}, coarse), abs=2e-3)


def test_the_fat_ring_tells_adiposity() -> None:
    half = bodies("adipose").shape[3] // 2
    ring_area = (bodies("adipose")[..., half] > 0.7).mean(axis=(1, 2))
    assert correlation(ring_area, factor("adiposity")) > 0.75


def test_heart_size_tells_adiposity_and_sex() -> None:
    together = factor("adiposity") + factor("sex")
    assert correlation(volume_of("heart"), together) > 0.65


def test_the_wall_of_the_heart_tells_vascular_disease() -> None:
    around = bodies("heart")
    muscle = ((around > 0.25) & (around < 0.6)).sum(axis=(1, 2, 3)) / (around > 0.1).sum(axis=(1, 2, 3))
    assert correlation(muscle, factor("vascular")) > 0.4


def test_ventricles_grow_with_age() -> None:
    frame = nominal_frame("brain", (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    middle = (np.abs(frame.x) < 24) & (np.abs(frame.y + 4) < 40) & (frame.z > -4) & (frame.z < 34)
    ventricles = (1 - bodies("brain"))[:, middle].sum(axis=1)
    assert correlation(ventricles, trait("brain", "ventricles")) > 0.6
    assert correlation(ventricles, factor("ageing")) > 0.3


def test_liver_fat_tells_metabolic_disease() -> None:
    tissue = np.array([np.median(body[body > 0.3]) for body in bodies("liver")])
    assert correlation(tissue, trait("liver", "fat")) > 0.9
    assert correlation(tissue, factor("metabolic")) > 0.5


def test_adipose_and_heart_volumes_say_more_than_those_of_other_organs() -> None:
    known = np.column_stack([factor(name) for name in FACTORS] + [np.ones(SUBJECTS)])
    told = {}
    for organ in SEVEN_ORGANS:
        volume = volume_of(organ)
        left = volume - known @ np.linalg.lstsq(known, volume)[0]
        told[organ] = 1 - left.var() / volume.var()
    weakest = min(told.pop("adipose"), told.pop("heart"))
    assert weakest > max(told.values()) + 0.05, (weakest, told)


def test_each_organ_has_a_painter_and_a_box() -> None:
    assert tuple(PAINTERS) == tuple(EXTENT_MM) == SEVEN_ORGANS
