"""The coordinator's SuperExec: it starts the ServerApp of a run and no other kind of task.

Whoever can reach a SuperLink's Control API can submit an AgentApp, and Flower's own SuperExec would run it on the coordinator's
machine. Here such a task is claimed and not started, so that its run fails. Run it in place of `flower-superexec`, with the
same options, beside a SuperLink with `--isolation process` and a secret that both share.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.superexec import TaskExecutor, run_superexec

RUNNABLE = "flwr-serverapp"
"""The one kind of task that a coordinator runs, in Flower's words."""
SERVER_APP = (sys.executable, "-I", "-B", str(Path(__file__).with_name("server_app.py")))


def refusal(kind: str) -> str:
    """Why a kind of task is not started."""
    return "" if kind == RUNNABLE else f"the coordinator runs server apps and no {kind}"


def executor() -> TaskExecutor:
    """Has server apps started, and nothing else."""
    return TaskExecutor(SERVER_APP, refusal)


if __name__ == "__main__":
    run_superexec(executor)
