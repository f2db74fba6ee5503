"""The site's SuperExec: it takes a SuperNode's tasks as Flower's own does, and starts the guard for each, whatever its kind.

Flower's starts one of six programs by looking its name up in PATH, with the task's token on the command line. Here there is
one program, by its full path, in Python's isolated mode (no PYTHONPATH, no working folder), and the token goes through a pipe.
The guard answers tasks of every kind but the ClientApp's with a refusal, for a SuperNode whose message is never answered waits
for ever. Run it in place of `flower-superexec`, with the same options, beside a SuperNode with `--isolation process`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.pinned_flower import SUPEREXEC, pinned
from panfm.errors import PanfmError

if TYPE_CHECKING:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

GUARD = Path(__file__).with_name("guard.py")


def guard_command(spec: ExecutionSpec) -> list[str]:
    """What the guard is started with for a task."""
    command = [sys.executable, "-I", "-B", str(GUARD), "--task-kind", spec.task_type.value]
    command += ["--runtime-api-address", spec.runtime_api_address]
    if spec.insecure:
        command.append("--insecure")
    elif spec.root_certificates_path is not None:
        command += ["--root-certificates", spec.root_certificates_path]
    if spec.parent_pid is not None:
        command += ["--parent-pid", str(spec.parent_pid)]
    return command


class GuardExecutor:
    """Flower's Executor interface: starts the guard, and buries it when it has ended."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """All kinds are taken, the refused ones to be refused."""
        return supported_task_types, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """There is always room for one process."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start the guard for a task."""
        from flwr.supercore.superexec.executor import LaunchResult

        process = subprocess.Popen(guard_command(spec), stdin=subprocess.PIPE)
        assert process.stdin is not None  # as asked for
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it may have ended; the task then expires
            pipe.write(spec.token.encode())
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Forget the processes that have ended."""
        self._running = [process for process in self._running if process.poll() is None]

    def close(self) -> None:
        """The guards watch this process and end with it."""


def main() -> None:
    """Run Flower's SuperExec with the guard in place of its programs."""
    try:
        module = pinned(SUPEREXEC, "get_executor", "run_superexec")
    except PanfmError as error:
        sys.exit(f"panfm: {error}")
    from flwr.supercore.cli import flower_superexec

    module.get_executor = lambda *_, **__: GuardExecutor()  # type: ignore[attr-defined]  # whatever executor is asked for
    flower_superexec()


if __name__ == "__main__":
    main()
