"""Programs are kept running: what ended or fell silent starts again, at its pace, and all end together with what they started."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.supervised import BEAT_FILE, SUPERVISOR
from deploy.supervision import STEADY_S, WATCHED_S, Program, Supervisor, end_all, has_ended, pause_s

PATIENCE_S = 60.0

BEATING = "import os, pathlib, time\nwhile True: pathlib.Path(os.environ['PANFM_BEAT_FILE']).touch(); time.sleep(.02)"
SILENT = "import time; time.sleep(600)"
ENDS = "raise SystemExit(3)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
WITH_CHILD = (
    f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SILENT!r}]).pid, flush=True); input()"
)


def _python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", code)


def _supervisor(folder: Path, *programs: Program) -> Supervisor:
    return Supervisor(programs, os.environ, folder)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def ended() -> Iterator[list[Supervisor]]:
    """Supervisors whose programs are ended after the test, however it ends."""
    supervisors: list[Supervisor] = []
    yield supervisors
    for supervisor in supervisors:
        end_all([kept.process for kept in supervisor._kept if kept.process is not None], patience_s=0)


# ---- the pause before another start -------------------------------------------------------------------------------------


@given(failures=st.integers(1, 10**6), shortest=st.floats(0.1, 60), longest=st.floats(60, 600))
def test_pauses_grow_from_the_shortest_and_stay_at_the_longest(failures: int, shortest: float, longest: float) -> None:
    program = Program(name="p", command=(), shortest_pause_s=shortest, longest_pause_s=longest)
    assert pause_s(program, 1) == shortest
    assert shortest <= pause_s(program, failures) <= pause_s(program, failures + 1) <= longest


def test_pauses_of_a_supernode() -> None:
    program = Program(name="p", command=(), shortest_pause_s=15.0)
    assert [pause_s(program, failures) for failures in range(1, 6)] == [15, 30, 60, 60, 60]


# ---- starting again, by a clock of the test's own -----------------------------------------------------------------------


def _process(supervisor: Supervisor) -> subprocess.Popen[bytes] | None:
    return supervisor._kept[0].process


def _let_it_end(supervisor: Supervisor) -> None:
    process = _process(supervisor)
    assert process is not None
    _until(lambda: has_ended(process))


def test_program_that_ends_is_started_again_after_longer_and_longer_pauses(
    tmp_path: Path, ended: list[Supervisor]
) -> None:
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(ENDS), shortest_pause_s=2.0))
    ended.append(supervisor)
    now = 1000.0
    for pause in (2.0, 4.0, 8.0):
        supervisor.tick(now)
        _let_it_end(supervisor)
        supervisor.tick(now)
        assert _process(supervisor) is None
        supervisor.tick(now + pause - 0.1)
        assert _process(supervisor) is None
        now += pause
    supervisor.tick(now)
    _let_it_end(supervisor)
    supervisor.tick(now + STEADY_S + 1)  # it had run for long
    assert supervisor._kept[0].start_at_s == now + STEADY_S + 1 + 2.0


def test_program_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    supervisor = _supervisor(tmp_path, Program(name="p", command=("/no/such/program",)))
    supervisor.tick(1000.0)
    assert (supervisor._kept[0].process, supervisor._kept[0].start_at_s) == (None, 1001.0)
    assert supervisor.alive() == {"p": False}


def test_program_waits_for_what_must_come_before_its_first_start_only(tmp_path: Path, ended: list[Supervisor]) -> None:
    may = [False]
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(ENDS), may_start=lambda: may[0]))
    ended.append(supervisor)
    supervisor.tick(1000.0)
    assert _process(supervisor) is None
    may[0] = True
    supervisor.tick(1001.0)
    _let_it_end(supervisor)
    may[0] = False
    supervisor.tick(1002.0)
    supervisor.tick(1010.0)
    assert _process(supervisor) is not None


# ---- alive, or only there -----------------------------------------------------------------------------------------------


def test_live_loop_is_told_from_a_dead_one_which_is_ended_and_started_again(
    tmp_path: Path, ended: list[Supervisor]
) -> None:
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(BEATING)))
    ended.append(supervisor)
    (kept,) = supervisor._kept
    start = time.monotonic()
    supervisor.tick(start)
    assert supervisor.alive() == {"p": False}, "it is there, and has not said that it lives"
    first = kept.process
    assert first is not None

    def beats() -> bool:
        supervisor.tick(start)
        return kept.heard_s is not None

    _until(beats)
    assert supervisor.alive() == {"p": True}

    first.send_signal(signal.SIGSTOP)  # a loop that stopped, in a process that is there
    os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
    supervisor.tick(start)  # hears its last beat
    late, silent = start + kept.program.late_s + 1, start + kept.program.silence_s + 1
    assert kept.is_alive(start)
    assert not kept.is_alive(late)
    supervisor.tick(late)
    assert not has_ended(first), "late is not silent"
    supervisor.tick(silent)
    _until(lambda: has_ended(first))
    supervisor.tick(silent)
    supervisor.tick(silent + 10)
    assert kept.process is not None
    assert kept.process.pid != first.pid
    assert kept.heard_s is None, "the old one's beats do not count for the new one"


def test_program_that_never_gives_a_sign_is_ended_too(tmp_path: Path, ended: list[Supervisor]) -> None:
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(SILENT), first_sign_s=100.0))
    ended.append(supervisor)
    (kept,) = supervisor._kept
    supervisor.tick(1000.0)
    process = kept.process
    assert process is not None
    supervisor.tick(1099.0)
    assert not has_ended(process)
    supervisor.tick(1101.0)
    _until(lambda: has_ended(process))


def test_nobody_is_alive_when_nobody_has_looked_of_late(tmp_path: Path, ended: list[Supervisor]) -> None:
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(BEATING), late_s=1e9))
    ended.append(supervisor)

    def is_alive() -> bool:
        supervisor.tick(time.monotonic())
        return supervisor.alive()["p"]

    _until(is_alive)
    supervisor.ticked_s -= WATCHED_S + 1
    assert supervisor.alive() == {"p": False}


def test_program_that_does_not_beat_is_asked(tmp_path: Path) -> None:
    answers = [False]
    program = Program(name="p", command=_python(SILENT), probe=lambda: answers[0])
    supervisor, ending = _supervisor(tmp_path, program), threading.Event()
    thread = threading.Thread(target=supervisor.run, args=(ending.is_set,))
    thread.start()
    try:
        _until(lambda: supervisor._kept[0].process is not None)
        assert supervisor.alive() == {"p": False}
        answers[0] = True
        _until(lambda: supervisor.alive()["p"])
    finally:
        ending.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


# ---- the end ------------------------------------------------------------------------------------------------------------


def _started(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_python(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def _is_there(number: int) -> bool:
    status = Path(f"/proc/{number}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_all_end_politely_or_by_force_with_what_they_started() -> None:
    stubborn, parent = _started(STUBBORN), _started(WITH_CHILD)
    try:
        assert stubborn.stdout is not None
        assert parent.stdout is not None
        stubborn.stdout.readline()
        child = int(parent.stdout.readline())
        assert _is_there(child)
    finally:
        end_all([stubborn, parent], patience_s=0.5)
    assert (stubborn.returncode, parent.returncode) == (-signal.SIGKILL, -signal.SIGTERM)
    _until(lambda: not _is_there(child))
    for process in (stubborn, parent):
        process.communicate()


def test_what_a_killed_program_leaves_behind_ends_before_it_starts_again(
    tmp_path: Path, ended: list[Supervisor]
) -> None:
    code = (
        "import pathlib, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SILENT!r}])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid) + ' ')\n"
        "child.wait()"
    )
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(code)))
    ended.append(supervisor)
    (kept,) = supervisor._kept
    supervisor.tick(1000.0)
    _until(lambda: (tmp_path / "child").exists() and (tmp_path / "child").read_text().endswith(" "))
    child = int((tmp_path / "child").read_text())
    assert kept.process is not None
    kept.process.kill()
    _until(lambda: kept.process is not None and has_ended(kept.process))
    supervisor.tick(1000.0)
    _until(lambda: not _is_there(child))


def test_programs_know_their_file_and_their_supervisor(tmp_path: Path, ended: list[Supervisor]) -> None:
    code = (
        f"import os, pathlib; pathlib.Path({str(tmp_path / 'told')!r}).write_text("
        f"os.environ[{BEAT_FILE!r}] + '|' + os.environ[{SUPERVISOR!r}] + '|')"
    )
    supervisor = _supervisor(tmp_path, Program(name="p", command=_python(code)))
    ended.append(supervisor)
    supervisor.tick(1000.0)
    _until(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text().endswith("|"))
    assert (tmp_path / "told").read_text() == f"{tmp_path / 'p'}|{os.getpid()}|"
