"""The scanner of a site: everything that differs between two hospitals' images of the same body.

A scanner is a function of (seed, name) and of nothing else: sampling (in-plane spacing, slice spacing, slice axis),
storage order of the axes, contrast (gamma, gain), bias field of the coil, noise. A scan adds what differs from one
examination to the next: a gain of its own, the noise, where the patient lay.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from panfm.config import OrganGrid
from panfm.data.synthetic.anatomy import EXTENT_MM
from panfm.data.synthetic.shapes import Point, Volume
from panfm.organs import SEVEN_ORGANS
from panfm.randomness import stream

AXIS_CODES: tuple[str, ...] = ("RAS", "LPS", "LAS", "PSR", "RSA", "LIP", "ASL", "PIR")
"""Storage orders that scanners of hospitals and converters really produce: axial, sagittal and coronal stacks."""
SLICE_FACTORS: tuple[float, ...] = (1.0, 1.0, 1.5, 2.0)
"""Slice spacing over in-plane spacing: half of the scanners are isotropic, the others thick-sliced."""
MARGIN_VOXELS = 6
"""Nominal voxels that a scan covers beyond the organ's box, both sides together: room for a crop to shift."""


def _ras_axis(code: str) -> int:
    """The RAS axis along which a stored axis with this code runs: 0 for L and R, 1 for P and A, 2 for I and S."""
    return "LRPAIS".index(code) // 2


@dataclass(frozen=True, slots=True)
class Scanner:
    """How one site's machine turns a body into numbers."""

    name: str
    axis_codes: str
    """Direction of growing index of each stored axis, as nibabel's axcodes."""
    in_plane_factor: float
    """In-plane spacing over the organ's nominal spacing."""
    slice_factor: float
    """Slice spacing over in-plane spacing."""
    gamma: float
    """Exponent on tissue brightness: the contrast of the sequence."""
    gain: float
    """Stored number of brightness 1."""
    bias: tuple[float, ...]
    """Coil shading: coefficients of x, y, z, x2, y2, z2 on positions scaled to -1..1, in log brightness."""
    noise: float
    """Standard deviation of the noise of each channel, brightness 1 = 1 (Rician after the magnitude)."""

    @property
    def slice_axis(self) -> int:
        """Axis across the slices in RAS (0 sagittal, 1 coronal, 2 axial stack): the one that is stored last."""
        return _ras_axis(self.axis_codes[2])

    def spacing_mm(self, grid: OrganGrid) -> Point:
        """Voxel spacing of a scan, in RAS order."""
        spacing = [nominal * self.in_plane_factor for nominal in grid.spacing_mm]
        spacing[self.slice_axis] *= self.slice_factor
        return spacing[0], spacing[1], spacing[2]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Where a scan of one organ is measured: RAS order, the middle of the scan at 0, millimetres."""

    spacing_mm: Point
    shape: tuple[int, int, int]
    slice_axis: int
    slabs_per_slice: int
    """A thick slice is the mean of this many thin slabs, as its slice profile would be."""

    def axes_mm(self) -> tuple[Volume, Volume, Volume]:
        """Centres of the thin slabs and voxels along each axis."""
        counts, steps = list(self.shape), list(self.spacing_mm)
        counts[self.slice_axis] *= self.slabs_per_slice
        steps[self.slice_axis] /= self.slabs_per_slice
        x, y, z = ((np.arange(n, dtype=np.float32) - (n - 1) / 2) * step for n, step in zip(counts, steps, strict=True))
        return x.astype(np.float32), y.astype(np.float32), z.astype(np.float32)

    def edge_mm(self) -> float:
        """Edge width of solids: the mean spacing in a slice."""
        in_plane = [step for axis, step in enumerate(self.spacing_mm) if axis != self.slice_axis]
        return sum(in_plane) / 2

    def merge_slabs(self, slabs: Volume) -> Volume:
        """Mean of the slabs of each slice."""
        if self.slabs_per_slice == 1:
            return slabs
        before, after = slabs.shape[: self.slice_axis], slabs.shape[self.slice_axis + 1 :]
        split = slabs.reshape(*before, -1, self.slabs_per_slice, *after)
        merged: Volume = split.mean(axis=self.slice_axis + 1)
        return merged


def recommended_grids(voxels: int) -> dict[str, OrganGrid]:
    """The RAS grid that holds each of the seven organs with this many voxels a side."""
    return {
        organ: OrganGrid(shape=[voxels] * 3, spacing_mm=[extent / voxels for extent in EXTENT_MM[organ]])
        for organ in SEVEN_ORGANS
    }


def scanner_of(seed: int, name: str) -> Scanner:
    """The scanner of that name: a function of the seed and the name alone."""
    rng = stream(seed, "scanner", name)
    return Scanner(
        name=name,
        axis_codes=AXIS_CODES[int(rng.integers(len(AXIS_CODES)))],
        in_plane_factor=float(rng.uniform(0.9, 1.15)),
        slice_factor=SLICE_FACTORS[int(rng.integers(len(SLICE_FACTORS)))],
        gamma=float(rng.uniform(0.75, 1.35)),
        gain=float(np.exp(rng.uniform(math.log(200), math.log(2000)))),
        bias=tuple(float(value) for value in rng.normal(0, [0.12, 0.12, 0.12, 0.1, 0.1, 0.1])),
        noise=float(rng.uniform(0.012, 0.035)),  # a signal-to-noise ratio of 26 to 75 in bright tissue
    )


def sampling_of(scanner: Scanner, grid: OrganGrid) -> Sampling:
    """How a scanner samples an organ whose nominal grid this is, with a margin on each side."""
    spacing = scanner.spacing_mm(grid)
    field = [(side + MARGIN_VOXELS) * step for side, step in zip(grid.shape, grid.spacing_mm, strict=True)]
    x, y, z = (math.ceil(width / step) for width, step in zip(field, spacing, strict=True))
    return Sampling(spacing, (x, y, z), scanner.slice_axis, 2 if scanner.slice_factor > 1 else 1)


def _shading(scanner: Scanner, shape: tuple[int, int, int]) -> tuple[Volume, Volume, Volume]:
    """The bias field as three factors, one per axis: it is the exponential of a sum over axes."""
    lines = [np.linspace(-1, 1, count, dtype=np.float32) for count in shape]
    slopes, bows = scanner.bias[:3], scanner.bias[3:]
    x, y, z = (np.exp(slope * u + bow * u * u) for slope, bow, u in zip(slopes, bows, lines, strict=True))
    return x[:, None, None], y[None, :, None], z[None, None, :]


def acquire(scanner: Scanner, tissue: Volume, rng: np.random.Generator) -> NDArray[np.int16]:
    """Stored numbers of one scan of tissue brightness (X, Y, Z): contrast, shading, gain and Rician noise."""
    x, y, z = _shading(scanner, (tissue.shape[0], tissue.shape[1], tissue.shape[2]))
    signal = np.power(np.clip(tissue, 0, 1.2), np.float32(scanner.gamma)) * (x * y) * z
    gain = np.float32(scanner.gain * math.exp(0.1 * float(rng.standard_normal())))
    # SFC64 draws normals twice as fast as Philox, and noise is half the time of a scan.
    fast = np.random.Generator(np.random.SFC64(int(rng.integers(2**63))))
    real, imaginary = fast.standard_normal((2, *tissue.shape), dtype=np.float32)
    real *= scanner.noise
    real += signal
    imaginary *= scanner.noise
    magnitude = np.sqrt(real * real + imaginary * imaginary)
    stored: NDArray[np.int16] = np.rint(np.clip(magnitude * gain, 0, np.iinfo(np.int16).max)).astype(np.int16)
    return stored


def _in_stored_order(
    codes: str, values: NDArray[np.int16], affine: NDArray[np.float64]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Values and affine with RAS axes, rearranged so that axis k runs towards codes[k]."""
    order = [_ras_axis(code) for code in codes]
    values, columns = values.transpose(order), affine[:, order]
    origin = affine[:, 3].copy()
    for stored, code in enumerate(codes):
        if code in "LPI":
            origin += (values.shape[stored] - 1) * columns[:, stored]
            columns[:, stored] *= -1
            values = np.flip(values, stored)
    return values, np.column_stack([columns, origin])


_image: Callable[[NDArray[np.int16], NDArray[np.float64]], Any] = nib.Nifti1Image
"""nibabel's constructor, given the types that it lacks."""


def stored_image(scanner: Scanner, sampling: Sampling, values: NDArray[np.int16], centre_mm: Point) -> nib.Nifti1Image:
    """A NIfTI image in the scanner's axis order, whose affine puts the middle of the scan at `centre_mm` (RAS)."""
    affine = np.diag([*sampling.spacing_mm, 1.0])
    affine[:3, 3] = np.array(centre_mm) - np.array(sampling.spacing_mm) * (np.array(values.shape) - 1) / 2
    image = _image(*_in_stored_order(scanner.axis_codes, values, affine))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"panfm synthetic, scanner {scanner.name}"[:79].encode("ascii", "replace")
    made: nib.Nifti1Image = image
    return made
