"""`panfm data show` after `index` and `prepare`: the whole way of one scan from a folder to a picture."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from matplotlib.image import imread
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.data.manifest import read_scan_table
from panfm.errors import DataError
from panfm.organs import SEVEN_ORGANS


def _panfm(*words: object) -> str:
    result = CliRunner().invoke(app, ["data", *map(str, words)])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_from_a_folder_to_a_picture(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (tmp_path / "scans/brain").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 200, (40, 40, 40), dtype=np.int16)
    image = nibabel.Nifti1Image(noise, np.diag([4.0, 4.0, 4.0, 1.0]))  # type: ignore[no-untyped-call]
    image.to_filename(tmp_path / "scans/brain/p1.nii.gz")
    _panfm("index", tmp_path / "scans", "--out", site)
    _panfm("prepare", site, "--recipe", "demo", "--workers", 1)
    (row,) = read_scan_table(site / "scans.csv", SEVEN_ORGANS)
    said = _panfm("show", row.subject, "--folder", site, "--recipe", "demo")
    assert said == f"{site / row.subject}.png: brain\n"
    assert imread(site / f"{row.subject}.png").shape[1] > 1000
    result = CliRunner().invoke(app, ["data", "show", "p1", "--folder", str(site), "--recipe", "demo"])
    assert isinstance(result.exception, DataError), "by pseudonym, not by name"
