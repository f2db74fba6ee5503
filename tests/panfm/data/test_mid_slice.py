"""The small slices are upright whatever the axis order of the file, and show the organ in their middle."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from panfm.data.mid_slice import mid_slices
from panfm.data.reading import read_scan
from panfm.data.scan import Scan

nib: Any = nibabel


def _body() -> Any:
    """A body, brightest to the right, front and head, with an organ off its centre; 2 mm RAS+."""
    right, front, head = np.meshgrid(*[np.linspace(0, 1, side) for side in (30, 24, 20)], indexing="ij")
    return nib.Nifti1Image(
        (100 + 90 * right + 60 * front + 30 * head).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0])
    )


def _organ() -> Any:
    drawn = np.zeros((30, 24, 20), dtype=np.uint8)
    drawn[6:14, 8:14, 5:11] = 1
    return nib.Nifti1Image(drawn, np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ILA"])
def test_upright_whatever_the_axis_order(axes: str) -> None:
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(axes))
    body, organ = _body().as_reoriented(turn), _organ().as_reoriented(turn)
    drawn = np.asarray(organ.dataobj) != 0
    scan = Scan(np.asarray(body.dataobj), body.affine, (2.0, 2.0, 2.0), "")
    axial, coronal = mid_slices(scan, drawn, drawn)
    for one in (axial, coronal):
        rows, columns = np.nonzero(one.organ)
        middle = (one.grey.shape[0] - 1) / 2
        assert abs(rows.mean() - middle) < 1.5
        assert abs(columns.mean() - middle) < 1.5
        inside = np.where(one.organ, one.grey.astype(float), np.nan)
        top, bottom = np.nanmean(inside[: int(middle)]), np.nanmean(inside[int(middle) + 1 :])
        left, right = np.nanmean(inside[:, : int(middle)]), np.nanmean(inside[:, int(middle) + 1 :])
        assert top > bottom
        assert left > right


def test_one_head_in_several_axis_orders(real_data: Path) -> None:
    pages = []
    for path in sorted((real_data / "odd/niivue/orient").glob("*.nii.gz")):
        scan = read_scan(path)
        everything = np.ones(scan.voxels.shape, dtype=np.bool_)
        pages.append([one.grey.astype(float) for one in mid_slices(scan, everything, everything)])
    for page in pages[1:]:
        for one, first in zip(page, pages[0], strict=True):
            assert np.abs(one - first).mean() < 3  # of 255: origins differ by half a voxel
