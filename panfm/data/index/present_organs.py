"""Which organs a scan shows, by looking into its label maps: an organ without a voxel is not listed.

Tools write a mask for every structure that they know, empty where the scan does not reach it, and a multi-organ map says
nothing of its content by its name. So each map is read once, here; whether it fits its scan is for `panfm data check`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from panfm.data.index.found import FoundScan, LabelMap, Skipped
from panfm.data.reading import read_label_map
from panfm.errors import DataError, ScanError

_MOST_LABEL = 65_535
"""Larger numbers are intensities, not labels."""


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Where one organ is drawn: files with the labels that are the organ in them, none for whole masks."""

    path: Path
    label_ids: tuple[int, ...]


def scans_by_organ(
    scans: Iterable[FoundScan], vocabulary: Sequence[str], name_of: Callable[[Path], str]
) -> tuple[list[FoundScan], list[Skipped]]:
    """Each scan once per organ that it shows, with the label maps of that organ alone.

    Args:
        scans: what a layout found.
        vocabulary: the study's organs.
        name_of: how a path is named among what was skipped.
    """
    listed: list[FoundScan] = []
    skipped: list[Skipped] = []
    for scan in scans:
        if not scan.label_maps:
            listed.append(scan)
            continue
        try:
            found = _of_one_scan(scan, vocabulary)
        except DataError as error:
            code = error.code if isinstance(error, ScanError) else "label_map"
            skipped.append(Skipped(name_of(scan.path), code, f"its label map: {error}"))
            continue
        listed += found
        if not found:
            reason = f"its label maps show no {scan.organ or 'organ of this study'}"
            skipped.append(Skipped(name_of(scan.path), "no_organ", reason))
    return listed, skipped


def _of_one_scan(scan: FoundScan, vocabulary: Sequence[str]) -> list[FoundScan]:
    organs = [scan.organ] if scan.organ else vocabulary
    drawn = {organ: [d for one in scan.label_maps if (d := _drawn(one, organ, scan)) is not None] for organ in organs}
    present = _labels_present({one.path for found in drawn.values() for one in found})
    rows = []
    for organ, found in drawn.items():
        shown = [one for one in found if _shows(one, present[one.path])]
        if len({one.label_ids for one in shown}) > 1:
            raise DataError(f"{organ} is drawn in several maps by other numbers; name one map of it")
        if shown:
            maps = tuple(LabelMap(one.path) for one in shown)
            rows.append(replace(scan, organ=organ, label_maps=maps, label_ids=shown[0].label_ids))
    return rows


def _drawn(label_map: LabelMap, organ: str, scan: FoundScan) -> _Drawn | None:
    """What a map has to say of an organ: all that is not zero, some numbers, or nothing."""
    if label_map.organ:
        return _Drawn(label_map.path, ()) if label_map.organ == organ else None
    if label_map.labels is None:
        return _Drawn(label_map.path, scan.label_ids) if scan.organ == organ else None
    if label_map.name:
        named = label_map.name in label_map.labels.names.get(organ, ())
        return _Drawn(label_map.path, ()) if named else None
    ids = label_map.labels.ids.get(organ)
    return _Drawn(label_map.path, ids) if ids else None


def _labels_present(paths: Iterable[Path]) -> dict[Path, frozenset[int]]:
    return {path: _labels_in(path) for path in sorted(paths)}


def _labels_in(path: Path) -> frozenset[int]:
    """Every number but zero that occurs in a label map.

    Raises: DataError when it cannot be read, or holds no labels.
    """
    voxels = read_label_map(path).voxels
    low, high = float(voxels.min()), float(voxels.max())
    if low < 0 or high > _MOST_LABEL:
        message = f"{path.name}: labels should be 0 to {_MOST_LABEL}, got {low:g} to {high:g}; is it a scan?"
        raise ScanError(f"{message} [not_labels]", "not_labels")
    counts = np.bincount(np.ceil(voxels).astype(np.uint16).ravel(order="K"))  # a soft mask's 0.3 is not zero either
    return frozenset(int(label) for label in np.flatnonzero(counts) if label)


def _shows(drawn: _Drawn, present: frozenset[int]) -> bool:
    return bool(present & set(drawn.label_ids)) if drawn.label_ids else bool(present)
