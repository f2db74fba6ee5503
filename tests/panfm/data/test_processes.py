"""Work shared by processes gives what one gives; a worker that dies is told as such, and none outlives its parent."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from panfm.data.processes import over_processes, usable_cores

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_all_answers_come_once_whoever_works(processes: int) -> None:
    assert sorted(over_processes(len, ["x" * number for number in range(40)], processes)) == list(range(40))


def test_this_process_works_too_and_the_others_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    jobs = [["sh", "-c", "sleep 0.3; echo $OMP_NUM_THREADS"]] * 8
    assert {answer.strip() for answer in over_processes(subprocess.check_output, jobs, 2)} == {b"7", b"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_what_work_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(over_processes(int, ["1", "two", "3"], 2))


def test_no_more_cores_are_used_than_this_process_may() -> None:
    mine = os.sched_getaffinity(0)
    assert usable_cores() == len(mine)
    pin = f"import os; os.sched_setaffinity(0, [{min(mine)}])"
    with _start(f"{pin}; from panfm.data.processes import usable_cores; print(usable_cores())") as process:
        said, _ = process.communicate(timeout=60)
    assert said == "1\n"


def _start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


_KILLED = """
import os
from panfm.data.processes import over_processes
from panfm.errors import DataError
try:  # the first job kills the worker that takes it; this process takes the last ones
    list(over_processes(os.system, ["kill -9 $PPID", "sleep 1", "sleep 1", "sleep 1"], 2))
except DataError as error:
    print(error)
"""


def test_a_killed_worker_is_told_as_such() -> None:
    with _start(_KILLED) as process:
        said, _ = process.communicate(timeout=60)
    assert said.startswith("a process that reads scans was killed, perhaps for memory")


_PARENT = """
import time
from panfm.data.processes import over_processes
for _ in over_processes(time.sleep, [0, 600, 600, 1], 2):  # the worker does the first job and sits in the second
    print("answered", flush=True)
"""


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc to look for child processes")
def test_a_worker_whose_parent_was_killed_ends() -> None:
    with _start(_PARENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == process.stdout.readline() == "answered\n"
        workers = _until(lambda: [pid for pid in _children(process.pid) if _sleeps(pid)])
        process.kill()
        process.wait()
        _until(lambda: [pid for pid in workers if not _sleeps(pid)])


def _sleeps(pid: int) -> bool:
    """Whether a worker (and not multiprocessing's resource tracker) is still there."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _until(look: Callable[[], list[int]]) -> list[int]:
    """Look until there is something; a test that never gets there fails by its own words."""
    for _ in range(1200):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come about within a minute")
