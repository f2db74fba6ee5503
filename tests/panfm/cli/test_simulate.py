"""`panfm simulate` hands everything to the rehearsal untouched, or says where to find one."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import ConfigError


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The argument vectors with which the process would have been replaced."""
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _program, arguments: calls.append(arguments))
    return calls


def _rehearsal_in(folder: Path) -> Path:
    (folder / "simulation").mkdir()
    (folder / "simulation" / "__init__.py").write_text("", encoding="utf-8")
    program = "import sys\nprint(*sys.argv[1:], sep='|')\nsys.exit(6)\n"
    (folder / "simulation" / "__main__.py").write_text(program, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["recipe=demo", "rounds=5"],
        ["recipe=real", "data=a folder", "--cfg", "job"],
        ["--cfg", "job", "rounds=1", "-p", "model", "+new=[1,2]", "~old"],
    ],
)
def test_overrides_pass_through_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_over: list[list[str]], overrides: list[str]
) -> None:
    monkeypatch.chdir(_rehearsal_in(tmp_path))
    result = CliRunner().invoke(app, ["simulate", *overrides])
    assert result.exit_code == 0, result.output
    assert handed_over == [[sys.executable, "-m", "simulation", *overrides]]


def test_library_without_checkout_says_where_rehearsals_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handed_over: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    (tmp_path / "simulation").mkdir()  # a folder of results, say: no program
    result = CliRunner().invoke(app, ["simulate", "recipe=demo"])
    assert isinstance(result.exception, ConfigError)
    assert "checkout" in str(result.exception)
    assert handed_over == []


def test_exit_code_and_output_are_the_rehearsals_own(tmp_path: Path) -> None:
    call = "from panfm.cli.main import main; main()"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {call}", "simulate", "rounds=1"],
        cwd=_rehearsal_in(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (6, "rounds=1\n"), done.stderr
