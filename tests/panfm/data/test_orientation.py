"""One head stored in eight axis orders comes out as one prepared volume, and a head whose axes are mislabelled does not."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from panfm.config import OrganGrid, PrepareConfig, Spacing
from panfm.data.manifest import ScanRow
from panfm.data.prepare import prepare_native, prepare_scan

WriteScan = Callable[..., Path]

ORDERS = ("ASL", "IRA", "LIA", "LPS", "PIR", "PSR", "RAS", "RPI")
GRID = OrganGrid(shape=[32, 40, 32], spacing_mm=[6.0, 6.0, 6.0])

HALF_PRECISION_STEP = 2.0**-9
"""Between neighbouring half-precision numbers at 2 to 4 standard deviations, the largest that stand in a volume. The same
sums in another axis order differ in the last bits of single precision, a thousandth of that: a value may then fall on the
other side of one rounding, and no further."""


@pytest.fixture
def heads(real_data: Path) -> dict[str, Path]:
    folder = real_data / "odd" / "niivue" / "orient"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return {order: folder / f"{order}.nii.gz" for order in ORDERS}


def _image(path: Path) -> Any:
    load: Any = nib.load
    return load(path)


def _prepared(path: Path) -> NDArray[np.float32]:
    return prepare_scan(ScanRow(subject="s", organ="brain", path=path), GRID, PrepareConfig()).astype(np.float32)


def test_the_files_are_what_their_names_say(heads: dict[str, Path]) -> None:
    """Else the agreement below would prove nothing: eight orders, and shapes that are not all alike."""
    axes: Any = nib.orientations.aff2axcodes
    assert {order: "".join(axes(_image(path).affine)) for order, path in heads.items()} == {o: o for o in ORDERS}
    assert len({_image(path).shape for path in heads.values()}) > 1


def test_every_axis_order_gives_the_same_prepared_volume(heads: dict[str, Path]) -> None:
    wanted = _prepared(heads["RAS"])
    assert wanted.std() > 0.5
    for order, path in heads.items():
        np.testing.assert_allclose(_prepared(path), wanted, rtol=0, atol=HALF_PRECISION_STEP, err_msg=order)


def test_every_axis_order_gives_the_same_native_crop(heads: dict[str, Path]) -> None:
    grid = OrganGrid(shape=[48, 48, 48], spacing=Spacing.native)
    row = {order: ScanRow(subject="s", organ="brain", path=path) for order, path in heads.items()}
    wanted = prepare_native(row["RAS"], grid, PrepareConfig())
    for order in ORDERS:
        crop = prepare_native(row[order], grid, PrepareConfig())
        assert crop.spacing_mm == pytest.approx(wanted.spacing_mm, abs=1e-4)
        found, expected = (c.voxels.astype(np.float16).astype(np.float32) for c in (crop, wanted))
        # A crop of even sides around an odd organ has its middle between two voxels: an order that counts backwards may
        # stand one voxel aside.
        shifts = [np.roll(expected, step, axis=(0, 1, 2))[2:-2, 2:-2, 2:-2] for step in np.ndindex(3, 3, 3)]
        inner = np.roll(found, (1, 1, 1), axis=(0, 1, 2))[2:-2, 2:-2, 2:-2]
        assert min(float(np.abs(inner - shifted).max()) for shifted in shifts) <= HALF_PRECISION_STEP, order


def test_a_head_with_mislabelled_axes_disagrees(heads: dict[str, Path], tmp_path: Path, write_scan: WriteScan) -> None:
    """Left and right swapped in the voxels and not in the affine: the comparison above would see it."""
    image = _image(heads["RAS"])
    swapped = write_scan(tmp_path / "swapped.nii.gz", np.asarray(image.dataobj)[::-1].copy(), image.affine)
    assert np.abs(_prepared(swapped) - _prepared(heads["RAS"])).max() > 100 * HALF_PRECISION_STEP
