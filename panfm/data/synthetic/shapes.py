"""Solids and grain as functions of position, so that posing an organ or changing its scanner never resamples an image.

A `Frame` holds the position of each voxel in the organ's own axes, millimetres. Solids are approximate signed
distances (negative inside, millimetres); `cover` turns one into the share of a voxel that it fills. Grain is a sum of
plane waves, which a scanner of any spacing samples from the same field. Legend: X, Y, Z voxel axes in RAS.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Volume = NDArray[np.float32]
Point = tuple[float, float, float]

WAVES = 24
"""Plane waves in one grain; enough that no single one is seen."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where each voxel lies in the organ's own axes (X to the right, Y to the front, Z to the head), millimetres."""

    x: Volume
    y: Volume
    z: Volume
    axes_mm: tuple[Volume, Volume, Volume]
    """Voxel centres along each axis of the scan, before posing: shapes (X,), (Y,), (Z,)."""
    edge_mm: float
    """Width over which the surface of a solid blurs: about one voxel."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


def posed_frame(axes_mm: tuple[Volume, Volume, Volume], rotation_deg: Point, shift_mm: Point, edge_mm: float) -> Frame:
    """The frame of an organ that is turned about X, Y, Z and then shifted in the scan."""
    to_organ = Rotation.from_euler("xyz", rotation_deg, degrees=True).inv().as_matrix().astype(np.float32)
    x, y, z = (axis - np.float32(shift) for axis, shift in zip(axes_mm, shift_mm, strict=True))
    coordinates = [
        row[0] * x[:, None, None] + (row[1] * y[None, :, None] + row[2] * z[None, None, :]) for row in to_organ
    ]
    return Frame(coordinates[0], coordinates[1], coordinates[2], axes_mm, edge_mm)


def _level(coordinates: Sequence[Volume], centre: Sequence[float], radii: Sequence[float]) -> Volume:
    """sqrt(sum of ((coordinate - centre) / radius)^2), in place: temporaries of this size cost more than the sums."""
    level: Volume = np.zeros(coordinates[0].shape, np.float32)
    for coordinate, middle, radius in zip(coordinates, centre, radii, strict=True):
        term = coordinate - middle
        term *= 1.0 / radius
        term *= term
        level += term
    np.sqrt(level, out=level)
    return level


def ellipsoid(frame: Frame, centre: Point, radii: Point) -> Volume:
    """Signed distance to an ellipsoid, scaled so that it is exact for a sphere."""
    distance = _level((frame.x, frame.y, frame.z), centre, radii)
    distance -= 1.0
    distance *= math.exp(sum(math.log(radius) for radius in radii) / 3)
    return distance


def cylinder(frame: Frame, centre: tuple[float, float], radii: tuple[float, float]) -> Volume:
    """Signed distance to an endless elliptic cylinder along Z, exact for a round one."""
    distance = _level((frame.x, frame.y), centre, radii)
    distance -= 1.0
    distance *= math.sqrt(radii[0] * radii[1])
    return distance


def tube(frame: Frame, start: Point, end: Point, radius_start: float, radius_end: float) -> Volume:
    """Signed distance to a tapering capsule from start to end."""
    direction = [b - a for a, b in zip(start, end, strict=True)]
    length_squared = sum(step * step for step in direction)
    offsets = [coordinate - a for coordinate, a in zip((frame.x, frame.y, frame.z), start, strict=True)]
    along: Volume = np.zeros(frame.shape, np.float32)
    for offset, step in zip(offsets, direction, strict=True):
        along += offset * (step / length_squared)
    np.clip(along, 0.0, 1.0, out=along)
    for offset, step in zip(offsets, direction, strict=True):
        offset -= along * step
    distance = _level(offsets, (0, 0, 0), (1, 1, 1))
    along *= radius_end - radius_start
    distance -= along
    distance -= radius_start
    return distance


def balls(frame: Frame, centres: Sequence[Point], radius: float) -> Volume:
    """Signed distance to the union of balls of one radius; far away everywhere when there is none."""
    nearest: Volume = np.full(frame.shape, 1e6, np.float32)
    for centre in centres:
        np.minimum(nearest, _level((frame.x, frame.y, frame.z), centre, (1, 1, 1)), out=nearest)
    nearest -= radius
    return nearest


def cover(frame: Frame, distance: Volume) -> Volume:
    """Share of each voxel inside the solid, 0 to 1 (partial volume, linear across one edge width)."""
    share: Volume = np.clip(distance * (-1.0 / frame.edge_mm) + 0.5, 0.0, 1.0)
    return share


def paint(image: Volume, value: float | Volume, share: Volume) -> None:
    """Mix a tissue into the image, in place."""
    image += share * (value - image)


def grain(frame: Frame, rng: np.random.Generator, wavelength_mm: float) -> Volume:
    """A random field of mean 0 and variance 1, cut off at +-3, that repeats about every `wavelength_mm`.

    The waves have random directions, phases and wavelengths within about a fifth of the one named. A plane wave is a
    product of one factor per axis, so the field is one matrix product and no voxel needs a sine.
    """
    directions = rng.standard_normal((WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    numbers = 2 * math.pi / wavelength_mm * np.exp(0.2 * rng.standard_normal((WAVES, 1))) * directions
    phases = np.exp(2j * math.pi * rng.random((WAVES, 1)))
    x, y, z = (np.exp(1j * numbers[:, k : k + 1] * axis) for k, axis in enumerate(frame.axes_mm))
    plane = (x[:, :, None] * y[:, None, :]).reshape(WAVES, -1)
    line = phases * z
    left = np.concatenate([plane.real, -plane.imag]).astype(np.float32)
    right = np.concatenate([line.real, line.imag]).astype(np.float32)
    field: Volume = (left.T @ right).reshape(frame.shape)
    field *= math.sqrt(2.0 / WAVES)
    np.clip(field, -3.0, 3.0, out=field)
    return field
