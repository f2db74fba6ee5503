"""A program's signs of life, on copies of what Flower repeats and pauses by."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.supercore.retry import make_simple_http_retry_invoker

from deploy import supervised
from deploy.supervised import BEAT_FILE, SUPERVISOR, beat, beat_with_each_call, beat_with_each_pause

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in its order, beats among it."""
    happened: list[str] = []
    monkeypatch.setattr(supervised, "beat", lambda: happened.append("beat"))
    return happened


def _invoker() -> Any:
    """What a module of Flower makes once we stand in it."""
    module: Any = SimpleNamespace(make_simple_http_retry_invoker=make_simple_http_retry_invoker)
    beat_with_each_call(module)
    invoker = module.make_simple_http_retry_invoker()
    invoker.wait_function = lambda _: None
    return invoker


def test_call_beats_before_and_after(beats: list[str]) -> None:
    def call() -> int:
        beats.append("call")
        return 5

    assert _invoker().invoke(call) == 5
    assert beats == ["beat", "call", "beat"]


def test_tries_at_a_coordinator_that_is_away_beat_too(beats: list[str]) -> None:
    tries = iter([httpx.ConnectError("refused"), httpx.ConnectError("refused"), None])

    def call() -> None:
        beats.append("try")
        if error := next(tries):
            raise error

    _invoker().invoke(call)
    assert beats == ["beat", "try", "beat", "beat", "try", "beat", "beat", "try", "beat"]


def test_pause_beats_and_pauses(beats: list[str]) -> None:
    module: Any = SimpleNamespace(time=time)
    beat_with_each_pause(module)
    module.time.sleep(0)
    assert beats == ["beat", "beat"]
    assert time.sleep is not module.time.sleep, "other modules pause as before"


def test_beat_touches_the_file_and_is_never_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BEAT_FILE, raising=False)
    beat()
    monkeypatch.setenv(BEAT_FILE, str(tmp_path / "none" / "beat"))
    beat()
    monkeypatch.setenv(BEAT_FILE, str(tmp_path / "beat"))
    beat()
    assert (tmp_path / "beat").exists()


_ORPHAN = """
import os, subprocess, sys
code = "import sys, time; sys.path.append(sys.argv[1]); from deploy.supervised import end_with_supervisor; "
code += "end_with_supervisor(); print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-I", "-c", code, sys.argv[1]], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, env={**os.environ, sys.argv[2]: str(os.getpid())})
child.stdout.readline()
print(child.pid, flush=True)
os._exit(0)
"""


def test_orphan_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", _ORPHAN, ROOT, SUPERVISOR], capture_output=True, text=True, check=True
    )
    orphan = Path(f"/proc/{int(done.stdout)}/stat")
    deadline = time.monotonic() + 60
    while orphan.exists() and orphan.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
