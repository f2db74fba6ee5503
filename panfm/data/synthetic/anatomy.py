"""Seven organs as pictures: each painter turns trait values into tissue brightness on a frame.

A painter draws from `rng` in an order that does not depend on the frame, so that two scanners see the same anatomy.
Trait values come clipped to +-DRAWN_LIMIT. Sizes are those of adults, millimetres, simplified; brightness is 0 (air,
nothing) to about 1. Parameters of traits are chosen so that two standard deviations are what one meets in a clinic: a
brain's ventricles halve or double in volume, a heart's wall measures 6 to 15 mm, a fat ring 8 to 38 mm.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from panfm.data.synthetic.shapes import (
    Frame,
    Point,
    Volume,
    balls,
    cover,
    cylinder,
    ellipsoid,
    grain,
    paint,
    tube,
)

Traits = Mapping[str, float]
Painter = Callable[[Frame, Traits, np.random.Generator], Volume]

LESION_CANDIDATES = 5
"""A subject's lesions sit at the first few of this many random places."""


def _lesions(
    frame: Frame, trait: float, rng: np.random.Generator, radii: Point, centre: Point, radius_mm: float
) -> Volume:
    """Share of each voxel in lesions: none to five balls inside an ellipsoid, more and larger with the trait."""
    directions = rng.standard_normal((LESION_CANDIDATES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    places = directions * rng.random((LESION_CANDIDATES, 1)) ** (1 / 3) * np.array(radii) + np.array(centre)
    count = round(min(max(1.5 + 1.2 * trait + 0.5 * float(rng.standard_normal()), 0.0), LESION_CANDIDATES))
    chosen: list[Point] = [(float(p[0]), float(p[1]), float(p[2])) for p in places[:count]]
    return cover(frame, balls(frame, chosen, radius_mm * math.exp(0.15 * trait)))


def _both_sides(frame: Frame, centre: Point, radii: Point) -> Volume:
    """Signed distance to an ellipsoid and its mirror image across the middle."""
    folded = Frame(np.abs(frame.x), frame.y, frame.z, frame.axes_mm, frame.edge_mm)
    return ellipsoid(folded, centre, radii)


def paint_brain(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """Skull-stripped T1: white matter bright, folded cortex grey, sulci and ventricles dark."""
    size = 1 + 0.035 * traits["size"]
    folds = grain(frame, rng, 21.0)
    cerebrum = ellipsoid(frame, (0, 2, 10), (62 * size, 78 * size, 55 * size))
    cerebellum = np.minimum(
        _both_sides(frame, (22 * size, -46 * size, -44 * size), (25, 24, 18)),
        tube(frame, (0, -8, -20), (0, -22, -68), 13, 9),
    )
    image = 0.52 * cover(frame, np.minimum(cerebrum, cerebellum))
    paint(image, 0.9, cover(frame, cerebrum + 11 + 7 * np.clip(folds, -1, 3)))
    paint(image, 0.82, cover(frame, cerebellum + 7 + 3 * np.clip(folds, -1.3, 3)))
    paint(image, 0.66, cover(frame, _both_sides(frame, (14, -6, 2), (9, 15, 10))))
    hippocampus = math.exp(0.13 * traits["hippocampus"])
    paint(
        image,
        0.5,
        cover(frame, _both_sides(frame, (27, -14, -16), (7 * hippocampus, 18 * hippocampus, 7 * hippocampus))),
    )
    paint(image, 0.5, _lesions(frame, traits["lesions"], rng, (34, 46, 12), (0, -2, 22), 5.0))
    widening = math.exp(0.12 * traits["ventricles"])
    horns = _both_sides(frame, (9 * widening, -4, 14), (6.5 * widening, 30 * widening, 9 * widening))
    paint(image, 0.12, cover(frame, horns))
    threshold = 1.0 - 0.22 * traits["sulci"]
    sulci = np.clip((folds - threshold) * 3, 0, 1) * np.clip((cerebrum + 16) * 0.15, 0, 1)
    paint(image, 0.12, sulci * (cerebrum < 4))
    fissure = cover(frame, np.abs(frame.x) - np.float32(1.5)) * ((frame.z > 24) | (np.abs(frame.y) > 52))
    paint(image, 0.12, fissure * (frame.z > -20) * (cerebrum < 4))
    return image


def paint_heart(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """Short-axis cine at end-diastole: bright blood, a dark thick ring of muscle, the right ventricle as a crescent."""
    size = 1 + 0.07 * traits["size"]
    radius = 19 * size * (1 + 0.06 * traits["cavity"])
    wall = 10.0 * math.exp(0.18 * traits["wall"])
    speckle = grain(frame, rng, 9.0)
    # the papillary muscles: two dark rods in the cavity
    rods = np.minimum(
        tube(frame, (-10 + 0.5 * radius, 6, -20), (-10 + 0.5 * radius, 6, 4), 3.2, 2.5),
        tube(frame, (-10 - 0.3 * radius, -0.5 * radius, -20), (-10 - 0.3 * radius, -0.5 * radius, 4), 3.2, 2.5),
    )
    base = frame.z - 26 * size
    cavity = np.maximum(ellipsoid(frame, (-10, 0, 4), (radius, radius, 1.9 * radius)), base)
    outer = radius + wall
    muscle = np.maximum(ellipsoid(frame, (-10, 0, 4), (outer, outer, 1.9 * radius + wall)), base)
    right = np.maximum(ellipsoid(frame, (14 * size, 8, 6), (27 * size, 25 * size, 36 * size)), base)
    image = 0.24 * cover(frame, ellipsoid(frame, (0, 0, 0), (56 * size, 52 * size, 50 * size)))
    paint(image, 0.9, cover(frame, tube(frame, (-14, -44, -60), (-14, -44, 60), 8, 9)))
    paint(image, 0.34, cover(frame, right - 3))
    paint(image, 0.84, cover(frame, right))
    scar = traits["scar"]
    paint(image, 0.36 + 0.025 * scar + (0.04 + 0.012 * scar) * speckle, cover(frame, muscle))
    paint(image, 0.92, cover(frame, cavity))
    paint(image, 0.4, cover(frame, np.maximum(rods, cavity)))
    return image


def paint_adipose(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """A slab of abdomen in a fat-bright image: the ring under the skin, the muscle wall, bowels with fat, the spine."""
    ring = 23 + 6.0 * traits["ring"]
    septa, bowel = grain(frame, rng, 22.0), grain(frame, rng, 46.0)
    wide, deep = (float(r) for r in (128, 88) * np.exp(0.02 * rng.standard_normal(2)))
    inner = cylinder(frame, (0, 0), (wide, deep))
    skin = cylinder(frame, (0, -0.12 * ring), (wide + 1.05 * ring, deep + 0.95 * ring))
    image = (0.86 + (0.05 + 0.015 * traits["septa"]) * septa) * cover(frame, skin)
    paint(image, 0.34, cover(frame, inner))
    muscle = 13 * math.exp(0.17 * traits["muscle"])
    inside = cover(frame, inner + muscle)
    paint(image, 0.26 + 0.06 * septa, inside)
    paint(image, 0.8, inside * np.clip((bowel - 0.55 + 0.35 * traits["visceral"]) * 2.5, 0, 1))
    back = -0.62 * deep
    loins = tube(frame, (-47, back + 6, -150), (-47, back + 6, 150), 22, 22)
    np.minimum(loins, tube(frame, (47, back + 6, -150), (47, back + 6, 150), 22, 22), out=loins)
    paint(image, 0.34, cover(frame, loins + 4 - 0.25 * muscle))
    paint(image, 0.62, cover(frame, cylinder(frame, (0, back + 8), (24, 20))))
    paint(image, 0.12, cover(frame, cylinder(frame, (0, back - 18), (9, 8))))
    return image


LIVER_VESSELS: tuple[tuple[Point, Point, float], ...] = (
    ((8, -34, 36), (70, -8, 22), 6.0),
    ((8, -34, 36), (40, 26, 30), 5.5),
    ((8, -34, 36), (-47, 14, 26), 5.0),
    ((12, -6, -22), (46, -12, -12), 7.0),
    ((46, -12, -12), (84, 6, -24), 5.0),
    ((46, -12, -12), (70, -26, 8), 4.5),
    ((12, -6, -22), (-30, 12, 12), 5.5),
)
"""Three hepatic veins from the vena cava, and the portal vein's branches: start, end, radius at the start (mm)."""


def paint_liver(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """A wedge, thick to the right and thin to the left, with dark vessels; fat makes the tissue bright."""
    size = 1 + 0.05 * traits["size"]
    nodules = grain(frame, rng, 17.0)
    patches = grain(frame, rng, 60.0)
    dome = ellipsoid(frame, (14, 0, 0), (96 * size, 64 * size, 66 * size))
    under = (-24 * size - 0.62 * frame.x - 0.25 * frame.y - frame.z) * 0.85
    roughness = 1.2 + 0.55 * traits["nodules"]
    surface = np.maximum(dome, under) + roughness * nodules
    tissue = 0.56 * math.exp(0.13 * traits["fat"])
    image = (tissue + 0.02 * patches + (0.026 + 0.008 * traits["nodules"]) * nodules) * cover(frame, surface)
    vessels = np.full(frame.shape, 1e3, np.float32)
    for start, end, radius in LIVER_VESSELS:
        np.minimum(vessels, tube(frame, start, end, radius, 0.45 * radius), out=vessels)
    paint(image, 0.25, cover(frame, np.maximum(vessels, surface + 3)))
    paint(image, 0.16, _lesions(frame, traits["lesions"], rng, (60, 34, 30), (26, 0, 10), 8.0) * cover(frame, surface))
    paint(image, 0.95, cover(frame, ellipsoid(frame, (22, 34, -40), (11, 15, 17))))
    return image


def paint_kidney(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """A left kidney: a bean with its hilum to the middle, bright cortex, darker pyramids, a fat sinus, dark cysts."""
    size = 1 + 0.06 * traits["size"]
    bent = Frame(frame.x - frame.z * frame.z * (1 / 210) + 5, frame.y, frame.z, frame.axes_mm, frame.edge_mm)
    bean = ellipsoid(bent, (0, 0, 0), (26 * size, 23 * size, 53 * size))
    hilum = ellipsoid(bent, (30 * size, 0, 0), (12, 13, 13))
    speckle = grain(frame, rng, 10.0)
    bean = np.maximum(bean, -hilum)
    cortex = 8.0 * math.exp(0.14 * traits["cortex"])
    columns = 2.5 * np.cos(frame.z * (2 * math.pi / 19) + 6.28 * float(rng.random()))
    contrast = 0.26 * math.exp(0.22 * traits["contrast"])
    image = (0.72 + 0.03 * speckle) * cover(frame, bean)
    paint(image, 0.72 - contrast, cover(frame, bean + cortex + columns))
    paint(
        image,
        0.95,
        cover(frame, ellipsoid(bent, (13 * size, 0, 0), (11 * size, 8 * size, 24 * size))) * cover(frame, bean),
    )
    cysts = _lesions(frame, traits["lesions"], rng, (20, 19, 42), (-4, 0, 0), 6.0)
    paint(image, 0.15, cysts * cover(frame, bean - 3))
    return image


def paint_spleen(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """A thick crescent, hollow towards the stomach, with a notched edge; its grain may be fine or coarse."""
    size = math.exp(0.09 * traits["size"])
    pulp = grain(frame, rng, 12.0 * math.exp(0.18 * traits["grain"]))
    body = ellipsoid(frame, (0, 0, 0), (31 * size, 38 * size, 50 * size))
    hollow = ellipsoid(frame, (38 * size, 12 * size, 4), (32 * size, 34 * size, 46 * size))
    notches = 1.5 * np.cos(frame.z * (2 * math.pi / 26) + 6.28 * float(rng.random())) * (frame.y > 10)
    surface = np.maximum(body, -hollow) + notches
    image = (0.6 + 0.07 * pulp) * cover(frame, surface)
    vein = tube(frame, (-8 * size, 4, 6), (26 * size, -2, -8), 3.5, 5.5)
    paint(image, 0.92, cover(frame, vein) * cover(frame, body))
    paint(image, 0.2, _lesions(frame, traits["lesions"], rng, (18, 26, 36), (-10, 0, 0), 5.5) * cover(frame, surface))
    return image


def paint_pancreas(frame: Frame, traits: Traits, rng: np.random.Generator) -> Volume:
    """A lobed band in a dim bed of tissue: thick head to the right, arched body, tail up to the left, a thin duct inside."""
    size = math.exp(0.10 * traits["size"])
    lobes, specks = grain(frame, rng, 14.0), grain(frame, rng, 10.0)
    x = np.clip(frame.x, -62, 56)
    arch_y = 15 - x * x * 0.0065
    arch_z = -0.24 * x + 2
    across = np.sqrt((frame.x - x) ** 2 + (frame.y - arch_y) ** 2 + (frame.z - arch_z) ** 2)
    radius = (11 + 0.06 * x + 5 * np.clip((x - 30) * 0.05, 0, 1)) * size
    uncinate = ellipsoid(frame, (46, -6, -24), (13 * size, 11 * size, 14 * size))
    depth = 2.6 + 1.0 * traits["lobules"]
    surface = np.minimum(across - radius, uncinate) + depth * np.clip(lobes, -0.4, 2)
    image = (0.22 + 0.02 * lobes) * cover(frame, ellipsoid(frame, (0, 0, 0), (84, 34, 45)))
    paint(image, 0.62, cover(frame, surface))
    paint(image, 0.95, cover(frame, surface) * np.clip((specks - 1.0 + 0.28 * traits["fat"]) * 0.7, 0, 1))
    duct = across - 2.2 * math.exp(0.25 * traits["duct"])
    paint(image, 0.1, cover(frame, np.maximum(duct, surface + 2)))
    vein = tube(frame, (30, -8, -6), (-56, -16, 16), 5, 4)
    paint(image, 0.06, cover(frame, vein) * cover(frame, -surface))
    return image


PAINTERS: dict[str, Painter] = {
    "brain": paint_brain,
    "heart": paint_heart,
    "adipose": paint_adipose,
    "liver": paint_liver,
    "kidney": paint_kidney,
    "spleen": paint_spleen,
    "pancreas": paint_pancreas,
}
"""The painter of each organ, in the project's order of organs."""

EXTENT_MM: dict[str, Point] = {
    "brain": (160.0, 196.0, 172.0),
    "heart": (136.0, 132.0, 128.0),
    "adipose": (400.0, 288.0, 192.0),
    "liver": (272.0, 172.0, 172.0),
    "kidney": (84.0, 76.0, 136.0),
    "spleen": (92.0, 116.0, 144.0),
    "pancreas": (184.0, 80.0, 104.0),
}
"""Size of the box that holds each organ with room for its largest form and its pose, XYZ (mm)."""
