"""Intensities that mean the same at every hospital: clipped by percentiles and z-scored over the foreground.

Background gets one fixed value, `BACKGROUND`, in every prepared volume: outside the scan, outside the table's window,
and air. Nothing lies below it. So a model can tell "no tissue here" from the darkest tissue, whatever the scanner.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from panfm.errors import DataError

BACKGROUND = -3.0
"""Value of background after normalisation, in foreground standard deviations; z-scores are cut off here."""

_ROBUST_PERCENTILES = (2.0, 98.0)
_AIR_SHARE = 0.1
"""Below this share of the robust range lies air: BET's rule (Smith 2002, Human Brain Mapping 17:143)."""


def foreground(voxels_XYZ: NDArray[np.float32], window: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Which voxels are tissue: those inside the window (both ends included), or, without one, those brighter than air.

    Args:
        voxels_XYZ: raw intensities of the whole scan.
        window: lowest and highest raw intensity that count, or None.
    """
    if window is not None:
        return (voxels_XYZ >= window[0]) & (voxels_XYZ <= window[1])
    low, high = (float(value) for value in np.percentile(voxels_XYZ, _ROBUST_PERCENTILES))
    return voxels_XYZ > low + _AIR_SHARE * (high - low)


def normalise(
    voxels_XYZ: NDArray[np.float32],
    foreground_XYZ: NDArray[np.bool_],
    reference: NDArray[np.float32],
    clip_percentiles: Sequence[float],
) -> NDArray[np.float32]:
    """Z-scores by the reference's statistics everywhere in the foreground, `BACKGROUND` elsewhere.

    Args:
        voxels_XYZ: raw intensities, any finite values.
        foreground_XYZ: which voxels are tissue.
        reference: the intensities that give percentiles, mean and standard deviation, in any shape.
        clip_percentiles: lower and upper percentile of the reference; what lies beyond is clipped.
    Raises: DataError when the reference has no contrast.
    """
    if reference.size < 2 or reference.min() == reference.max():
        raise DataError(f"the organ's {reference.size} voxels have no contrast; check label ids, box and window")
    low, high = (float(value) for value in np.percentile(reference, clip_percentiles))
    if low == high:  # the percentiles of a nearly flat organ may meet; its full range is then the better clip
        low, high = float(reference.min()), float(reference.max())
    clipped = np.clip(reference, low, high)
    mean, deviation = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
    scores = (np.clip(voxels_XYZ, low, high) - mean) / deviation
    return np.where(foreground_XYZ, np.maximum(scores, BACKGROUND), np.float32(BACKGROUND)).astype(np.float32)
