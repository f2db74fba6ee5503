"""The SuperNode's process ends when its loop does, with the code that says why."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.site.runtime import supernode
from deploy.site.runtime.supernode import LOOP_ENDED, exit_code_of

ROOT = Path(__file__).resolve().parents[4]

_MAIN = """
import sys, threading, time
sys.path.append(sys.argv[1])
import flwr.supernode.cli
from deploy.site.runtime import supernode

def program():
    threading.Thread(target=time.sleep, args=(600,)).start()  # as the one that hands out tasks
    {ends}

flwr.supernode.cli.flower_supernode = program
supernode.main()
"""


@pytest.mark.parametrize(("ends", "code"), [("raise OSError('database is locked')", LOOP_ENDED), ("sys.exit(1)", 1)])
def test_process_ends_with_its_loop_though_a_thread_goes_on(ends: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _MAIN.format(ends=ends), ROOT],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == code, done.stderr
    assert ("database is locked" in done.stderr) == ("locked" in ends)


def test_loop_that_comes_back_without_a_word_has_stopped() -> None:
    assert exit_code_of(lambda: None) == LOOP_ENDED


@pytest.mark.parametrize(("said", "code"), [(SystemExit(1), 1), (SystemExit(None), 0), (SystemExit("a word"), 1)])
def test_what_flower_says_of_its_end_is_the_end_s_code(said: SystemExit, code: int) -> None:
    def program() -> None:
        raise said

    assert exit_code_of(program) == code


def test_it_does_not_start_with_another_flower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.pinned_flower.FLOWER_VERSION", "1.42.0")
    with pytest.raises(SystemExit, match="guards Flower"):
        supernode.main()
