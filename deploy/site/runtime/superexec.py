"""The site's SuperExec: it takes a SuperNode's tasks as Flower's own does, and has the guard answer each, whatever its kind.

There is one program for all, by its full path and in Python's isolated mode (no PYTHONPATH, no working folder). The guard answers
tasks of every kind but the ClientApp's with a refusal, for a SuperNode whose message is never answered waits for ever. Run it in
place of `flower-superexec`, with the same options, beside a SuperNode with `--isolation process`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.superexec import TaskExecutor, run_superexec

GUARD = (sys.executable, "-I", "-B", str(Path(__file__).with_name("guard.py")))


def executor() -> TaskExecutor:
    """Hands every task to the guard."""
    return TaskExecutor(GUARD)


if __name__ == "__main__":
    run_superexec(executor)
