"""One writer for a run: whoever comes second is told who is first, and a death frees the run at once."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from panfm.errors import LockedError, RunError
from panfm.lock import held

HOLD = """
import sys, time
from collections.abc import Iterator
from pathlib import Path
from panfm.lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, ended by its own id."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run" / "run.lock")],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_is_told_who_holds_the_run_until_that_one_is_killed(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    place = tmp_path / "run" / "run.lock"
    with pytest.raises(LockedError) as caught, held(place):
        pass
    for told in (str(place.parent), f"process {holder.pid} on {socket.gethostname()} since 20", "wait until it ends"):
        assert told in str(caught.value)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with held(place):
        assert str(os.getpid()) in place.read_text()


def test_not_even_the_same_process_has_it_twice(tmp_path: Path) -> None:
    with held(tmp_path / "lock"):
        with pytest.raises(LockedError, match=f"process {os.getpid()}"), held(tmp_path / "lock"):
            pass
        with pytest.raises(LockedError, match="process"), held(tmp_path / "lock"):
            pass
    with held(tmp_path / "lock"), held(tmp_path / "another"):
        pass


def test_failure_within_frees_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="within"), held(tmp_path / "lock"):
        raise RunError("within")
    with held(tmp_path / "lock"):
        pass


def test_holder_that_has_not_written_its_name_yet(tmp_path: Path) -> None:
    with held(tmp_path / "lock"):
        (tmp_path / "lock").write_text("")
        with pytest.raises(LockedError, match="by another process;"), held(tmp_path / "lock"):
            pass


def test_program_started_meanwhile_does_not_keep_it(tmp_path: Path) -> None:
    """A site's worker process must not hold the run of a coordinator that is dead."""
    release = multiprocessing.get_context("spawn").Event()
    with held(tmp_path / "lock"):
        worker = multiprocessing.get_context("spawn").Process(target=release.wait, args=(60,))
        worker.start()
    try:
        with held(tmp_path / "lock"):
            assert worker.is_alive()
    finally:
        release.set()
        worker.join()
