"""The coordinator's runtime: keeps SuperLink and SuperExec running, sites let in or out, and wanted runs going.

The one program that the coordinator's image or systemd unit starts, on a folder made by `panfm coordinator init`. Flower's
interfaces, of which only one knows who asks, listen on loopback alone; nginx stands before that one (`proxy/nginx.conf`).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.chores import Chore
from deploy.serving import environment_for, python, run_in_folder, serve
from deploy.supervision import Program
from panfm.coordinator.begin import write_flower_config
from panfm.coordinator.flower import FlowerCommand
from panfm.coordinator.registration import Registrar
from panfm.coordinator.settings import (
    DATABASE,
    FLOWER_HOME,
    LOOPBACK,
    LOOPBACK_CA,
    LOOPBACK_KEY,
    RUNS,
    SECRET,
    CoordinatorSettings,
    read_settings,
)
from panfm.coordinator.studies import keep
from panfm.errors import RunError

HERE = Path(__file__).resolve().parent
REGISTRATION_EVERY_S = 2.0
STUDIES_EVERY_S = 15.0
PROBE_TIMEOUT_S = 10.0


def programs(folder: Path, settings: CoordinatorSettings, registration: Chore) -> list[Program]:
    """What runs at the coordinator; no task is started before all sites are let in or out."""
    return [
        Program(
            name="superlink",
            command=python(HERE / "superlink.py", *superlink_options(folder, settings)),
            probe=lambda: answers(folder, settings),
        ),
        Program(
            name="superexec",
            command=python(HERE / "superexec.py", *superexec_options(folder, settings)),
            may_start=registration.succeeded.is_set,
        ),
    ]


def superlink_options(folder: Path, settings: CoordinatorSettings) -> list[str]:
    """The SuperLink's."""
    options = ["--host", "127.0.0.1", "--port", str(settings.superlink_port), "--database", str(folder / DATABASE)]
    options += ["--ssl-certfile", str(folder / LOOPBACK), "--ssl-keyfile", str(folder / LOOPBACK_KEY)]
    options += ["--ssl-ca-certfile", str(folder / LOOPBACK_CA), "--enable-supernode-auth"]
    options += ["--disable-runtime-dependency-installation", "--isolation", "process"]
    return [*options, "--superexec-auth-secret-file", str(folder / SECRET)]


def superexec_options(folder: Path, settings: CoordinatorSettings) -> list[str]:
    """The SuperExec's."""
    options = ["--runtime-api-address", f"127.0.0.1:{settings.superlink_port}"]
    options += ["--root-certificates", str(folder / LOOPBACK_CA)]
    return [*options, "--superexec-auth-secret-file", str(folder / SECRET)]


def answers(folder: Path, settings: CoordinatorSettings) -> bool:
    """Whether the SuperLink answers."""
    try:
        context = ssl.create_default_context(cafile=folder / LOOPBACK_CA)
        url = f"https://127.0.0.1:{settings.superlink_port}/health"
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S, context=context) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def serve_coordinator(folder: Path) -> None:
    """Serve one study. Raises: PanfmError."""
    settings = read_settings(folder)
    home = folder / FLOWER_HOME
    write_flower_config(folder)  # it holds absolute paths, and folders are moved and mounted elsewhere
    flower = FlowerCommand(home)

    def once_up(do: Callable[[], list[str]]) -> list[str]:
        if not answers(folder, settings):
            raise RunError("the SuperLink does not answer; waiting for it")
        return do()

    registrar = Registrar(folder, flower)
    registration = Chore("registration", REGISTRATION_EVERY_S, lambda: once_up(registrar.look))
    studies = Chore("studies", STUDIES_EVERY_S, lambda: once_up(lambda: keep(folder, flower)))
    environment = environment_for(home) | {"PANFM_RUNS_DIR": str(folder / RUNS)}
    serve(programs(folder, settings, registration), [registration, studies], environment, settings.health_port)


if __name__ == "__main__":
    run_in_folder("Run a study's coordinator from its folder.", serve_coordinator)
