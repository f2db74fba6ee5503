"""Where the organ of a row lies in its scan: by label map, by box, or wherever there is tissue.

Preparing and checking both ask here, so that a scan which passes the check is a scan that can be prepared.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from panfm.data.geometry import (
    Affine,
    Region,
    bounding_box,
    box_region,
    centre_of,
    region_on_grid,
    same_grid,
    share_inside,
)
from panfm.data.intensity import foreground
from panfm.data.manifest import ScanRow
from panfm.data.quality import (
    RIGHT_AND_LEFT,
    Findings,
    contrast_findings,
    grid_findings,
    kept,
    organ_findings,
    overlap_findings,
    side_findings,
)
from panfm.data.reading import read_label_map
from panfm.data.scan import Scan
from panfm.errors import DataError, ScanError
from panfm.organs import TOTALSEGMENTATOR_CT


@dataclass(frozen=True, slots=True)
class Located:
    """An organ found in a scan."""

    organ: Region
    """Its voxels, shape XYZ of the scan, never empty."""
    tissue: Region
    """What is not background, in the whole scan."""
    repairs: Findings = ()
    """What was not as it should be with label map or box."""


def locate(row: ScanRow, scan: Scan) -> Located:
    """Find the organ of a row in its scan.

    Raises: ScanError with the code of the finding when the label map cannot be used or does not fit the scan, nothing of
        the organ is found, or there is no contrast in its bounding box.
    """
    tissue = foreground(scan.voxels, row.window)
    organ, repairs = _organ(row, scan, tissue)
    kept(row.path.name, organ_findings(row.organ, int(organ.sum())))
    box = bounding_box(organ)
    kept(row.path.name, contrast_findings(row.organ, scan.voxels[box][tissue[box]]))
    return Located(organ, tissue, repairs)


def _organ(row: ScanRow, scan: Scan, tissue: Region) -> tuple[Region, Findings]:
    if row.label_map:
        return _drawn_organ(row, scan)
    if row.box is None:
        return tissue, ()
    try:
        return box_region(row.box, scan.voxels.shape), ()
    except DataError as error:
        raise ScanError(f"{row.path.name}: {error} [box_outside]", "box_outside") from error


def _drawn_organ(row: ScanRow, scan: Scan) -> tuple[Region, Findings]:
    """The union of the row's label maps: any of them may be empty, not all."""
    organ = np.zeros(scan.voxels.shape, dtype=np.bool_)
    repairs: Findings = ()
    drawn_voxels = 0
    for path in row.label_map:
        labels = read_label_map(path)
        drawn = np.isin(labels.voxels, row.label_ids) if row.label_ids else labels.voxels != 0
        repairs += labels.repairs
        repairs += kept(path.name, grid_findings(drawn.shape, labels.affine, scan.voxels.shape, scan.affine))
        kept(path.name, _side_findings(row, labels))
        if drawn.any():
            drawn_voxels += int(drawn.sum())
            repairs += kept(path.name, _overlap_findings(row.organ, drawn, labels.affine, scan))
            organ |= region_on_grid(drawn, labels.affine, scan.voxels.shape, scan.affine)
    kept(row.label_map[0].name, organ_findings(row.organ, drawn_voxels))
    return organ, repairs


def _overlap_findings(organ: str, drawn: Region, map_affine: Affine, scan: Scan) -> Findings:
    if same_grid(drawn.shape, map_affine, scan.voxels.shape, scan.affine):
        return ()
    return overlap_findings(organ, share_inside(drawn, map_affine, scan.voxels.shape, scan.affine))


def _side_findings(row: ScanRow, labels: Scan) -> Findings:
    """Left and right within one whole-body map of known labels; nothing is said where one of the four is not drawn."""
    if TOTALSEGMENTATOR_CT.get(row.organ) != row.label_ids:
        return ()
    distances = []
    for right, left in RIGHT_AND_LEFT:
        pair = [labels.voxels == label for label in (right, left)]
        if not all(drawn.any() for drawn in pair):
            return ()
        right_mm, left_mm = (centre_of(drawn, labels.affine)[0] for drawn in pair)
        distances.append(float(right_mm - left_mm))
    return side_findings(distances)
