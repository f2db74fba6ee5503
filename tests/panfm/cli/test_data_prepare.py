"""`panfm data prepare` at the prompt: what it says, and that mistakes are one line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.store import PreparedStore
from panfm.errors import ConfigError, DataError


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A brain that can be used, and one that is cut short."""
    image_class: Any = nib.Nifti1Image
    voxels = np.random.default_rng(0).integers(1, 900, (20, 22, 24)).astype(np.int16)
    for name in ("a", "b"):
        image_class(voxels, np.diag([6.0, 6.0, 6.0, 1.0])).to_filename(tmp_path / f"{name}.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "b.nii.gz").read_bytes()[:-30])
    rows = [ScanRow(subject=name, organ="brain", path=tmp_path / f"{name}.nii.gz") for name in ("a", "b")]
    write_scan_table(tmp_path / "scans.csv", rows)
    return tmp_path


def test_it_says_what_was_prepared_on_whose_grids_and_what_was_not(site: Path) -> None:
    done = CliRunner().invoke(app, ["data", "prepare", str(site), "--recipe", "smoke", "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert f"prepared: 1 of 2 scans, in {site / 'store'}, on the organ grids of recipe smoke" in done.stdout
    assert f"left out: 1; {site / 'store' / 'refused.csv'} says which, and why" in done.stdout
    (entry,) = PreparedStore.open(site / "store").entries
    assert entry.shape == (20, 20, 20)


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["nowhere"], DataError, "should be a CSV table"),
        ([".", "--recipe", "smoek"], ConfigError, "no recipe is called 'smoek'"),
    ],
)
def test_a_mistake_is_told_by_its_own_kind(words: list[str], kind: type[Exception], said: str) -> None:
    done = CliRunner().invoke(app, ["data", "prepare", *words])
    assert isinstance(done.exception, kind)
    assert said in str(done.exception)
