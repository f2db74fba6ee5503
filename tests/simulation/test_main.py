"""`python -m simulation` at a terminal: one clear line and an exit code for each mistake, and a clean end on Ctrl-C."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from panfm import recipes
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, read_record
from simulation.__main__ import INTERRUPTED, main

ROOT = Path(__file__).resolve().parents[2]


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("panfm: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["recipe=demoo"], "no recipe is called 'demoo'; there are", 2),
        (["roundz=5"], "no setting is called roundz; did you mean rounds?", 2),
        (["rounds=many"], "could not be converted to Integer", 2),
        (["rounds=0"], "rounds must be at least 1, got 0", 2),
        (["name=../up"], "name= should be at most 100 letters", 2),
        (["--foo"], "settings are written key=value", 2),
        (["--cfg"], "--cfg needs the word job", 2),
        (["--cfg", "hydra"], "--cfg needs the word job", 2),
        (["recipe=real"], "cohort.kind=real needs data=FOLDER", 2),
        (["recipe=real", "data=/nowhere/at/all"], "data=/nowhere/at/all should point at the folder with brain_ixi", 3),
        (["recipe=smoke", "init_from=/nowhere", "cohort.probe_subjects=1", "sites=1"], "no model in /nowhere", 5),
    ],
)
def test_mistake_is_one_clear_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, code: int
) -> None:
    assert main([f"runs={tmp_path}", *arguments]) == code
    assert said in _said(capsys)


def test_run_name_that_exists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    assert main(["recipe=smoke", "name=mine", f"runs={tmp_path}"]) == 2
    assert "already; give another name=" in _said(capsys)


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str], taken_port: int) -> None:
    assert main(["recipe=smoke", f"runs={tmp_path}", "engine=loopback", f"port={taken_port}"]) == 7
    assert f"port {taken_port} on 127.0.0.1 is in use" in _said(capsys)


def test_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["recipe=smoke", f"runs={tmp_path}/file"]) == 1
    assert f"{tmp_path}/file" in _said(capsys)


@pytest.mark.parametrize("arguments", [["--cfg", "job", "recipe=smoke"], ["recipe=smoke", "--cfg", "job"]])
def test_settings_are_printed_wherever_the_option_stands(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 0
    assert recipes.run_from_yaml(capsys.readouterr().out) == recipes.load(["recipe=smoke"])


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_names_recipes_and_settings(capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main([option]) == 0
    text = capsys.readouterr().out
    assert "demo, public_start, real, smoke" in text
    assert "steps_per_round: " in text


class _Rehearsal:
    """A rehearsal in a process group of its own, as a terminal would start it."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.run = folder / "long"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulation", "recipe=smoke", "name=long", f"runs={folder}", *settings],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rounds(self) -> int:
        path = self.run / "record.jsonl"
        return sum(isinstance(e, RoundFinished) for e in read_record(path)) if path.exists() else 0

    def wait_for(self, number: int) -> None:
        """Until so many rounds are done; the test's own time limit ends a wait in vain."""
        while self.rounds() < number:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def group_lives(self) -> bool:
        """Whether any process of the group is left, after those that end with the first had time to."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def long_rehearsal(tmp_path: Path) -> Iterator[_Rehearsal]:
    few = ("cohort.subjects_per_site=3", "cohort.probe_subjects=1", "cohort.test_subjects=1")
    rehearsal = _Rehearsal(tmp_path, "rounds=10000", *few)
    yield rehearsal
    with contextlib.suppress(ProcessLookupError):
        os.killpg(rehearsal.process.pid, signal.SIGKILL)
    rehearsal.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_person_who_stops_a_run_keeps_what_was_finished(long_rehearsal: _Rehearsal, number: signal.Signals) -> None:
    long_rehearsal.wait_for(1)
    os.killpg(long_rehearsal.process.pid, number)
    out, err = long_rehearsal.process.communicate()

    assert long_rehearsal.process.returncode == INTERRUPTED
    assert err.splitlines() == ["panfm: stopped; what was finished is in the run's folder"]
    assert "Traceback" not in out
    assert not long_rehearsal.group_lives()
    (end,) = (e for e in read_record(long_rehearsal.run / "record.jsonl") if isinstance(e, RunFinished))
    assert (end.status, end.model) == ("stopped", "model")
    assert end.rounds_done >= 1
    assert read_model(long_rehearsal.run / "model").card.round == end.rounds_done
    assert "stopped" in (long_rehearsal.run / "report.html").read_text()


@pytest.mark.slow
def test_stop_while_hospitals_are_made_leaves_no_worker(tmp_path: Path) -> None:
    rehearsal = _Rehearsal(tmp_path, "workers=2", "cohort.subjects_per_site=5000")
    while not list(tmp_path.glob("long/hospitals/*/scans/*.nii")):
        assert rehearsal.process.poll() is None, rehearsal.process.communicate()
        time.sleep(0.05)
    os.killpg(rehearsal.process.pid, signal.SIGINT)
    _, err = rehearsal.process.communicate()
    assert rehearsal.process.returncode == INTERRUPTED
    assert "Traceback" not in err
    assert not rehearsal.group_lives()
