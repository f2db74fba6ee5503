"""Processes of a deployment are found, told apart and counted as the kernel counts them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from benchmarks.processes import Watch, processes_of, role_of

LARGE = 80_000_000


@pytest.mark.parametrize(
    ("command", "parent", "role"),
    [
        ("/venv/bin/python\0-I\0/opt/deploy/site/runtime/serve.py\0--folder\0/site", "", "runtime"),
        ("/venv/bin/python\0-I\0-B\0/opt/deploy/site/runtime/superexec.py\0--x", "runtime", "SuperExec"),
        ("/venv/bin/python\0-I\0-B\0/opt/deploy/site/runtime/guard.py", "SuperExec", "ClientApp in waiting"),
        ("/venv/bin/python\0-I\0-B\0/opt/deploy/site/runtime/guard.py", "ClientApp in waiting", "ClientApp"),
        ("/venv/bin/python\0-I\0-B\0/opt/x/server_app.py", "SuperExec", "ServerApp in waiting"),
        ("/venv/bin/python\0-I\0-B\0/opt/x/server_app.py", "ServerApp in waiting", "ServerApp"),
        ("nginx: master process /usr/sbin/nginx -e stderr", "", "nginx"),
        ("/venv/bin/python\0/venv/bin/flwr\0supernode\0list", "runtime", "Flower's command line"),
        ("sleep\0nginx.conf.d/superlink", "", "other"),
    ],
)
def test_process_is_told_by_its_program_and_who_started_it(command: str, parent: str, role: str) -> None:
    assert role_of(command, parent) == role


def test_process_and_its_children_are_counted_as_the_kernel_counts_them() -> None:
    script = f"import sys; x = bytearray(b'1') * {LARGE}; del x; f = open({os.devnull!r}); print(len(sys.path)); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = {process.pid: process for process in processes_of({"here": os.getpid()})}
        watch = Watch({"there": child.pid})
        watch.look()
        child.communicate("")
    large, own = found[child.pid], found[os.getpid()]
    assert large.peak_mb > LARGE / 1e6 > large.resident_mb, "what was let go counts in the peak alone"
    assert large.handles == 4, "three standard streams and a file"
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert own.peak_mb == pytest.approx(peak_mb, rel=0.02)
    assert watch.peak_mb == {("there", "other"): pytest.approx(large.peak_mb)}


def test_process_that_is_gone_is_nobody() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert processes_of({"gone": child.pid}) == []
