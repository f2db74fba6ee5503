"""`panfm report` prints where the page lies; what the page shows is tested beside `panfm.reporting`."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import PanfmError


def test_path_of_the_page_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from panfm.reporting import run_report

    monkeypatch.setattr(run_report, "write_run_report", lambda folder: folder / "report.html")
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'report.html'}\n")


def test_folder_without_a_run_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path / "no-such-run")])
    assert isinstance(result.exception, PanfmError)
    assert "no-such-run" in str(result.exception)
