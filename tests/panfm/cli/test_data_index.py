"""`panfm data index` from the words of the command line to the site's folder; what it finds is tested beside the library."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from collections.abc import Callable
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

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Index `site/` into `out/`, with a scan and a label map in it."""
    voxels = np.arange(216, dtype=np.uint8).reshape(6, 6, 6)
    for name, content in (("p1_t1", voxels), ("p1_seg", voxels // 100)):
        (tmp_path / "site").mkdir(exist_ok=True)
        nib.Nifti1Image(content, np.eye(4)).to_filename(tmp_path / f"site/{name}.nii.gz")

    def call(*options: str) -> Result:
        return CliRunner().invoke(
            app, ["data", "index", str(tmp_path / "site"), "--out", str(tmp_path / "out"), *options]
        )

    return call


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "scans.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_options_reach_the_table_and_the_second_run_keeps_the_key(tmp_path: Path, run: Run) -> None:
    options = (
        "--scan",
        "{subject}_t1",
        "--label-map",
        "{subject}_seg=liver",
        "--window",
        "liver=1:90.5",
        "--split",
        "test=1",
    )
    first = run(*options)
    assert first.exit_code == 0, first.output
    assert f"made the key {tmp_path / 'panfm-pseudonym.key'}" in first.output
    assert "1 scan of 1 subject" in first.output
    before = (tmp_path / "out/scans.csv").read_bytes()
    (row,) = _rows(tmp_path / "out")
    assert (row["organ"], row["window"], row["split"]) == ("liver", "1 90.5", "test")
    again = run(*options)
    assert "made the key" not in again.output
    assert (tmp_path / "out/scans.csv").read_bytes() == before


def test_organs_of_a_recipe(tmp_path: Path, run: Run) -> None:
    assert run("--scan", "{subject}_t1", "--organ", "brain", "--recipe", "demo").exit_code == 0
    assert isinstance(run("--scan", "{subject}_t1", "--organ", "knee").exception, ConfigError)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "liver=9:1"), "should rise"),
        (("--window", "liver=a:b"), "should be a number"),
        (("--window", "knee=1:2"), "this study knows"),
        (("--split", "pretrain"), "should be NAME=VALUE"),
        (("--split", "test=0.5"), "sum to 1"),
        (("--column", "subject=A", "--column", "subject=B"), "each name once"),
        (("--scan", "{who}"), r"\{who\} is not known"),
        (("--label-map", "{subject}=none.yaml"), "no such file"),
        (("--key", "{site}/k"), "should lie outside"),
    ],
)
def test_words_that_mean_nothing(tmp_path: Path, run: Run, options: tuple[str, ...], message: str) -> None:
    result = run(*(option.replace("{site}", str(tmp_path / "site")) for option in options), "--organ", "brain")
    with pytest.raises(ConfigError, match=message):
        raise result.exception or AssertionError(result.output)
    assert not (tmp_path / "out").exists()
