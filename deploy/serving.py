"""How a runtime serves: one process in the foreground, which logs to standard error and keeps all else of its side running."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deploy.chores import Chore, doing
from deploy.health import telling
from deploy.supervision import Program, Supervisor
from panfm.errors import PanfmError

log = logging.getLogger("panfm.deploy")

ROOT = Path(__file__).resolve().parents[1]
"""Where deploy/ lies, and in a checkout panfm/ beside it."""


def serve(
    programs: Sequence[Program], chores: Sequence[Chore], environment: Mapping[str, str], health_port: int
) -> None:
    """Keep programs running, do chores and tell of both, until SIGTERM or SIGINT. Raises: PortInUseError."""
    told: list[int] = []  # not an Event: a handler may interrupt whoever holds its lock
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.append(number))
    with tempfile.TemporaryDirectory(prefix="panfm-") as beats:
        supervisor = Supervisor(programs, environment, Path(beats))

        def alive() -> dict[str, bool]:
            return {**supervisor.alive(), **{chore.name: chore.is_alive() for chore in chores}}

        with telling(alive, health_port) as port, doing(chores):
            log.info("serving; health on 127.0.0.1:%d", port)
            supervisor.run(lambda: bool(told))
    log.info("ended")


def environment_for(flower_home: Path) -> dict[str, str]:
    """What Flower's programs are started with: a home of their own, and nothing that goes out to the internet."""
    checkout = (
        [str(ROOT)] if (ROOT / "panfm").is_dir() else []
    )  # where panfm is not installed; `-I` programs do without
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, (*checkout, os.environ.get("PYTHONPATH")))),
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
    }
    return {**os.environ, **ours}


def python(program: Path, *words: str) -> tuple[str, ...]:
    """A program of ours by its full path, in Python's isolated mode: no PYTHONPATH, no working folder on the path."""
    return (sys.executable, "-I", "-B", str(program), *words)


def flower(program: str, *words: str) -> tuple[str, ...]:
    """A program of Flower's, the one beside this Python."""
    return (str(Path(sys.executable).with_name(program)), *words)


def node_config(**settings: str) -> str:
    """Settings as Flower's --node-config takes them: TOML, whose strings are written as JSON's are."""
    return " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in settings.items())


def run_in_folder(what: str, serve_folder: Callable[[Path], None]) -> None:
    """The program around a runtime: its one option, its log, and a failure in one line."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder.absolute()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    os.umask(0o077)
    try:
        serve_folder(folder)
    except PanfmError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
