"""`panfm data check`: exit codes, one line per finding, and both files; verdicts are tested beside `panfm.data.check`."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import ConfigError

nib: Any = nibabel  # its types are incomplete


@pytest.fixture
def site(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(10, 99, (10, 11, 12)).astype(np.int16)
    nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 2.0, 1.0])).to_filename(tmp_path / "good.nii")
    content = (tmp_path / "good.nii").read_bytes()
    (tmp_path / "padded.nii").write_bytes(content + b"x")
    (tmp_path / "short.nii").write_bytes(content[:-1])
    return tmp_path


def _table(site: Path, *files: str) -> None:
    lines = [f"s{place},brain,{file}" for place, file in enumerate(files)]
    (site / "scans.csv").write_text("\n".join(["subject,organ,path", *lines]) + "\n", encoding="utf-8")


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", "check", "--workers", "1", *map(str, arguments)])


def test_nothing_refused(site: Path) -> None:
    _table(site, "good.nii", "padded.nii")
    result = _run(site)
    assert result.exit_code == 0
    assert "repaired [trailing_bytes]: s1 / brain: 1 bytes behind" in result.stdout
    assert "refused [" not in result.stdout
    assert (site / "check.csv").is_file()
    assert (site / "check.html").is_file()


def test_a_refused_scan_is_the_exit_code(site: Path) -> None:
    _table(site, "good.nii", "short.nii")
    result = _run(site, "--out", site / "there")
    assert result.exit_code == 8
    assert "refused [too_short]: s1 / brain: short.nii: the header claims" in result.stdout
    assert (site / "there" / "check.html").is_file()


def test_single_files(site: Path) -> None:
    result = _run(site / "good.nii", site / "short.nii")
    assert result.exit_code == 8
    assert "good.nii: fine, 10 x 11 x 12 voxels, RAS" in result.stdout
    assert "refused [too_short]: short.nii:" in result.stdout
    assert _run(site / "good.nii", "--label-map").exit_code == 0


def test_one_table_at_a_time(site: Path) -> None:
    _table(site, "good.nii")
    assert isinstance(_run(site, site / "good.nii").exception, ConfigError)
