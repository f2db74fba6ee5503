"""The coordinator's SuperExec: it starts the ServerApp of a run and no other kind of task.

Whoever can reach a SuperLink's Control API can submit an AgentApp, and Flower's own SuperExec would run it on the coordinator's
machine. Here such a task is claimed and not started, so that its run fails. Run it in place of `flower-superexec`, with the
same options, beside a SuperLink with `--isolation process` and a secret that both share.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

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
    from flwr.supercore.superexec.executor import ExecutionSpec, Executor, LaunchResult

RUNNABLE = "flwr-serverapp"
"""The one kind of task that a coordinator runs, in Flower's words."""


class ServerAppExecutor:
    """Flower's Executor interface: hands server apps on to Flower's own, and starts nothing else."""

    def __init__(self, own: Executor) -> None:
        self._own = own

    def get_eligible_capacity(
        self, supported_task_types: set[TaskType], *, insecure: bool = False, root_certificates_path: str | None = None
    ) -> tuple[set[TaskType], set[str]]:
        """All kinds are taken, the refused ones so that their runs end."""
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
        """Start a server app."""
        from flwr.supercore.superexec.executor import LaunchResult

        if spec.task_type.value != RUNNABLE:
            return LaunchResult.failed(f"the coordinator runs server apps and no {spec.task_type.value}")
        return self._own.launch(spec)

    def reconcile(self) -> None:
        """Flower's own has nothing to do, either."""
        self._own.reconcile()

    def close(self) -> None:
        """End with Flower's own."""
        self._own.close()


def main() -> None:
    """Run Flower's SuperExec for server apps only."""
    try:
        module = pinned(SUPEREXEC, "get_executor", "run_superexec")
    except PanfmError as error:
        sys.exit(f"panfm: {error}")
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

    module.get_executor = lambda *_, **__: ServerAppExecutor(SubprocessExecutor())  # type: ignore[attr-defined]  # as in the site's
    flower_superexec()


if __name__ == "__main__":
    main()
