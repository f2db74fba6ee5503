"""Programs that wait for tasks: each task in a process of its own, and all imported that the tasks need but no study's code."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.order import Order

ROOT = Path(__file__).resolve().parents[2]

_LOOP = """
import os, sys
sys.path.append(sys.argv[1])
from deploy.waiting import wait_for_orders
def begin(order):
    print(os.getpid(), os.getppid(), order.token, os.read(0, 100) == b"", flush=True)
    if order.token == "killed":
        os.kill(os.getpid(), 9)
    raise SystemExit(1)
wait_for_orders(["colorsys"], begin)
print("waited to the end", "colorsys" in sys.modules)
"""


def _order(token: str) -> Order:
    rest: dict[str, Any] = {"insecure": True, "root_certificates": None, "parent_pid": None}
    return Order(kind="flwr-clientapp", token=token, runtime_api_address="127.0.0.1:1", **rest)


def test_each_task_is_begun_in_a_process_of_its_own_which_sees_no_other_order() -> None:
    tokens = ["one", "killed", "three"]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        waiting = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", _LOOP, ROOT],
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        theirs.close()
        assert ours.recv(10) == b"!"
        ours.sendall(b"".join(_order(token).to_line() for token in tokens))
        ours.shutdown(socket.SHUT_WR)
        said, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, errors.decode()
    lines = said.decode().splitlines()
    assert "waited to the end True" in lines
    answers = [line.split() for line in lines if "waited" not in line]
    processes, parents, begun, is_alone = zip(*answers, strict=True)
    assert sorted(begun) == sorted(tokens)
    assert len({*processes, str(waiting.pid)}) == 4
    assert set(parents) <= {str(waiting.pid), "1"}
    assert set(is_alone) == {"True"}


_WARM = """
import importlib, os, sys
sys.path.append(sys.argv[1])
program = importlib.import_module(sys.argv[2])
for module in program.WARM:
    importlib.import_module(module)
warm = set(sys.modules)
studies = {"client", "server"}
assert not [name for name in warm if name.partition(".")[0] in studies], "no study's code before a task"
import torch
print(torch.cuda.is_initialized(), len(os.listdir("/proc/self/task")))
importlib.import_module(sys.argv[3])
of_others = {name.partition(".")[0] for name in set(sys.modules) - warm} - studies - {"panfm"} - sys.stdlib_module_names
print(sorted(of_others - {name.partition(".")[0] for name in warm}))
"""


@pytest.mark.parametrize(
    ("program", "app"),
    [("deploy.site.runtime.guard", "client.app"), ("deploy.coordinator.runtime.server_app", "server.app")],
)
def test_what_waits_has_imported_every_library_that_its_app_imports_and_nothing_of_a_study(
    program: str, app: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _WARM, ROOT, program, app], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    state, missing = done.stdout.splitlines()
    gpu, threads = state.split()
    assert gpu == "False", "a process with a GPU must not fork"
    assert int(threads) <= (os.cpu_count() or 1), "its own, and those of OpenBLAS, which minds forks"
    assert missing == "[]", "each message would pay for it"
