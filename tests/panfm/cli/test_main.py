"""The command's door: failures become one line and an exit code, and defects stay visible."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from panfm import __version__, errors
from panfm.cli import main as door


def _leaves(kind: type[errors.PanfmError]) -> list[type[errors.PanfmError]]:
    """The tree of `panfm.errors`; a room's own refinement of a leaf keeps that leaf's exit code."""
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return [kind, *(leaf for child in own for leaf in _leaves(child))]


@pytest.fixture
def failing_with(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """A command line whose single verb raises what the test puts into `failure`."""
    app = typer.Typer(pretty_exceptions_enable=False)
    monkeypatch.setattr(door, "app", app)
    monkeypatch.setattr(sys, "argv", ["panfm"])
    return app


@pytest.mark.parametrize("kind", _leaves(errors.PanfmError))
def test_failure_is_one_line_and_its_own_exit_code(
    failing_with: typer.Typer, capsys: pytest.CaptureFixture[str], kind: type[errors.PanfmError]
) -> None:
    @failing_with.command()
    def verb() -> None:
        raise kind("expected this, got that; do so")

    with pytest.raises(SystemExit) as stopped:
        door.main()
    assert stopped.value.code == kind.exit_code
    assert capsys.readouterr() == ("", "panfm: expected this, got that; do so\n")


def test_exit_codes_tell_the_failures_apart() -> None:
    codes = [kind.exit_code for kind in _leaves(errors.PanfmError)]
    assert 0 not in codes
    assert len(set(codes)) == len(codes)


def test_ctrl_c_ends_as_shells_expect(failing_with: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    @failing_with.command()
    def verb() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        door.main()
    assert stopped.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_defect_keeps_its_traceback(failing_with: typer.Typer) -> None:
    @failing_with.command()
    def verb() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        door.main()


def _panfm(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = "from panfm.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", call, *arguments], capture_output=True, text=True, check=False)


def test_version() -> None:
    done = _panfm("version")
    assert (done.returncode, done.stdout) == (0, f"panfm {__version__}\n")


def test_help_names_every_verb() -> None:
    shown = _panfm("--help").stdout
    assert all(verb in shown for verb in ("simulate", "report", "version"))


def test_unknown_verb_is_refused_without_traceback() -> None:
    done = _panfm("simulat")
    assert done.returncode == 2
    assert "simulate" in done.stderr
    assert "Traceback" not in done.stderr
