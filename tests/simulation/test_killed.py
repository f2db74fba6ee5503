"""Real processes killed with kill -9, the coordinator's, a site's worker's, or all at once: the model is the same to the bit.

Seven rehearsals are killed five times each at random moments. Each goes on until it is over, and is compared with one that
nothing happened to.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from panfm import recipes
from panfm.export.model_folder import read_model
from panfm.reporting.record import RoundFinished, RunFinished, RunResumed, read_record
from panfm.signing import public_hex
from server.run_folder import RECORD_FILE, coordinator_key
from simulation.hospitals import make_cohort
from simulation.resume import keep_cohort, keep_settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = "killed"
KILLS = 5
SETTINGS = (
    "recipe=smoke",
    f"name={RUN}",
    "rounds=6",
    "workers=2",
    "federation.wire.up=int8",  # with a residual that the site keeps
    "federation.server.optimiser=fedadam",
    "federation.server.rate=0.001",
)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rehearsal whose hospitals are made and whose study has not begun."""
    runs = tmp_path_factory.mktemp("template")
    config = recipes.load([*SETTINGS, f"runs={runs}"])
    (runs / RUN).mkdir()
    keep_settings(runs / RUN, config)
    cohort = make_cohort(config, runs / RUN, public_hex(coordinator_key(runs)), lambda *_: None)
    keep_cohort(runs / RUN, cohort)
    return runs


@pytest.fixture(scope="module")
def undisturbed(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    shutil.copytree(hospitals, runs)
    with _going_on(runs) as process:
        assert process.wait(timeout=280) == 0
    return runs / RUN


@contextlib.contextmanager
def _going_on(runs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that rehearses, in a group of its own, ended by its id whatever happens."""
    with (runs / "output.txt").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "simulation", f"resume={RUN}", f"runs={runs}"],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _num_lines(runs: Path) -> int:
    record = runs / RUN / RECORD_FILE
    return record.read_bytes().count(b"\n") if record.exists() else 0


def _workers(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes in which sites answer: what the fork server, a child of the process, has forked."""
    servers = [
        child for child in _children(process.pid) if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return [worker for server in servers for worker in _children(server)]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it is gone
        return []


def _kill(process: subprocess.Popen[bytes], whom: str, draw: random.Random) -> None:
    match whom:
        case "coordinator":
            os.kill(process.pid, signal.SIGKILL)
        case "worker":
            if workers := _workers(process):
                os.kill(draw.choice(workers), signal.SIGKILL)
        case "all":
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_lines(process: subprocess.Popen[bytes], runs: Path, lines: int) -> bool:
    """Whether the record grew to so many lines while the process lived."""
    while process.poll() is None:
        if _num_lines(runs) >= lines:
            return True
        time.sleep(0.002)
    return False


def _rehearse_and_kill(runs: Path, kills: list[str], draw: random.Random) -> int:
    """One life of the process; returns its exit status."""
    with _going_on(runs) as process:
        while kills:
            if not _wait_for_lines(process, runs, _num_lines(runs) + draw.randint(1, 8)):
                break
            time.sleep(draw.random() * 0.2)
            whom = kills.pop()
            _kill(process, whom, draw)
            if whom != "worker":
                break
        return process.wait(timeout=280)


@pytest.mark.parametrize("seed", range(6))
def test_killed_and_resumed_gives_the_same_bits(hospitals: Path, undisturbed: Path, tmp_path: Path, seed: int) -> None:
    runs, draw = tmp_path / "runs", random.Random(seed)
    shutil.copytree(hospitals, runs)
    kills = [draw.choice(["coordinator", "worker", "all"]) for _ in range(KILLS)]
    deaths = sum(whom != "worker" for whom in kills)
    statuses = [_rehearse_and_kill(runs, kills, draw) for _ in range(deaths)]
    while statuses[-1:] != [0]:
        assert len(statuses) <= deaths, (runs / "output.txt").read_text()
        statuses.append(_rehearse_and_kill(runs, kills, draw))

    assert kills == [], "the run was over too early to be killed so often"
    events, expected = (list(read_record(folder / RECORD_FILE)) for folder in (runs / RUN, undisturbed))
    digests = [
        {event.round: event.model_digest for event in found if isinstance(event, RoundFinished)}
        for found in (events, expected)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) == 6
    cards = [read_model(folder / "model").card for folder in (runs / RUN, undisturbed)]
    assert cards[0].student_digest == cards[1].student_digest
    assert [event.status for event in events if isinstance(event, RunFinished)] == ["complete"]
    assert len([event for event in events if isinstance(event, RunResumed)]) <= deaths
