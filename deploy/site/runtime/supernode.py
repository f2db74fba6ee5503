"""The site's SuperNode: Flower's own, which beats while its loop goes round and whose process ends when its loop does.

Flower's leaves its loop when the coordinator answers with an error, and its process stays, idle and offline for ever, for the
thread that hands out tasks goes on. Here the process then ends with code 70. Same options as `flower-supernode`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.pinned_flower import FLEET_CONNECTION, SUPERNODE_LOOP, pinned
from deploy.supervised import beat_with_each_call, beat_with_each_pause, end_with_supervisor
from panfm.errors import PanfmError

log = logging.getLogger("panfm.deploy")

LOOP_ENDED = 70
"""Exit code; EX_SOFTWARE of sysexits.h."""


def exit_code_of(program: Callable[[], None]) -> int:
    """Run a program that should never come back, and say with which code to end."""
    try:
        program()
    except SystemExit as ended:  # Flower ends itself: it was told to, or was turned away, and has said why
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception:
        log.exception("the SuperNode failed")
    return LOOP_ENDED


def main() -> None:
    """Run Flower's SuperNode."""
    try:
        loop = pinned(SUPERNODE_LOOP, "start_client_internal")
        connection = pinned(FLEET_CONNECTION, "http_request_response", "make_simple_http_retry_invoker")
    except PanfmError as error:
        sys.exit(f"panfm: {error}")
    from flwr.supernode.cli import flower_supernode

    beat_with_each_pause(loop)
    beat_with_each_call(connection)
    end_with_supervisor()
    code = exit_code_of(flower_supernode)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would wait for the thread that hands out tasks


if __name__ == "__main__":
    main()
