"""What the store holds of one subject, as the model will see it: for the eye of the engineer who prepared it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panfm.config import OrganGrid, Spacing
from panfm.data.native import crop_shape, thickness_of
from panfm.data.store import PreparedStore, StoreEntry
from panfm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownScan:
    """One prepared scan, cut to the model's grid."""

    organ: str
    visit: str
    split: str
    volume: NDArray[np.float32]
    """XYZ, the shape of the organ's grid; thick voxels of a native organ stand as often as they count."""
    spacing_mm: tuple[float, float, float]
    """XYZ, of the voxels as shown."""
    stored_spacing_mm: tuple[float, float, float]


def shown_scans(store: PreparedStore, subject: str, grids: Mapping[str, OrganGrid]) -> tuple[ShownScan, ...]:
    """The scans of one subject, organs in the order of the study, visits by name.

    Args:
        store: an open store.
        subject: a pseudonym.
        grids: the study's organs.
    Raises: DataError when the store has no such subject, was prepared for other grids, or a file of it has changed.
    """
    entries = [entry for entry in store.entries if entry.subject == subject]
    if not entries:
        raise DataError(_unknown(store, subject))
    order = {organ: place for place, organ in enumerate(grids)}
    if others := sorted({entry.organ for entry in entries} - order.keys()):
        raise DataError(
            f"the store holds {', '.join(others)}, which this recipe does not know; say --recipe as when preparing"
        )
    return tuple(
        _shown(store, entry, grids[entry.organ])
        for entry in sorted(entries, key=lambda entry: (order[entry.organ], entry.visit))
    )


def _unknown(store: PreparedStore, subject: str) -> str:
    known = sorted({entry.subject for entry in store.entries})
    near = difflib.get_close_matches(subject, known, n=1) or known[:1]
    such = f", such as {near[0]}" if near else ""
    return f"{store.folder} holds no subject {subject!r}, but {len(known)} others{such}; scans.csv says who is who"


def _shown(store: PreparedStore, entry: StoreEntry, grid: OrganGrid) -> ShownScan:
    shape = crop_shape(grid, entry.spacing_mm)
    spare = [stored - seen for stored, seen in zip(entry.shape, shape, strict=True)]
    if min(spare) < 0 or entry.native != (grid.spacing is Spacing.native):
        raise DataError(
            f"{entry.name} is stored as {list(entry.shape)} voxels, this recipe wants {list(shape)}; "
            "say --recipe as when preparing"
        )
    crop = store.crop(entry, [voxels // 2 for voxels in spare], shape)
    thickness = thickness_of(entry.spacing_mm, grid.max_degree) if entry.native else (1, 1, 1)
    for axis, times in enumerate(thickness):
        crop = np.repeat(crop, times, axis=axis)
    x, y, z = (step / times for step, times in zip(entry.spacing_mm, thickness, strict=True))
    return ShownScan(
        organ=entry.organ,
        visit=entry.visit,
        split=entry.split,
        volume=crop,
        spacing_mm=(x, y, z),
        stored_spacing_mm=entry.spacing_mm,
    )
