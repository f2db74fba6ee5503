"""`panfm follow` opens who is asked for and hands the record on; what they make of it is tested beside `panfm.reporting`."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import ConfigError, DataError
from panfm.reporting.record import RoundStarted, to_line


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "record.jsonl").write_text(to_line(RoundStarted(round=1, sites=["a"])) + "\n")
    return tmp_path


def test_once_writes_event_files_and_ends(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["follow", str(run_folder), "--tensorboard", "--once"])
    assert (result.exit_code, result.stdout) == (0, f"1 entries of {run_folder / 'record.jsonl'}\n")
    assert len(list((run_folder / "tensorboard").iterdir())) == 1


def test_without_anything_to_write_it_says_what_there_is(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["follow", str(run_folder)])
    assert isinstance(result.exception, ConfigError)
    assert "--tensorboard" in str(result.exception)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["follow", str(tmp_path / "no-such-run"), "--tensorboard"])
    assert isinstance(result.exception, DataError)
    assert "no-such-run" in str(result.exception)
