"""The site's runtime: keeps the SuperNode and the SuperExec of one hospital running, and tells of their health.

The one program that the site's image or systemd unit starts, on a folder that has joined a study (`panfm site join`). Nothing
listens outside this machine: the SuperNode dials the coordinator, and hands tasks to the SuperExec on loopback, over TLS.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last: an installed panfm goes before the one beside this folder

from deploy.serving import environment_for, node_config, python, run_in_folder, serve
from deploy.supervision import Program
from panfm.site.joining import CA, LOCAL, LOCAL_CA, LOCAL_KEY, NODE_KEY, SECRET, STUDY, StudyLink, read_link

HERE = Path(__file__).resolve().parent
FLOWER_HOME = f"{STUDY}/flower"
SHORTEST_PAUSE_S = 15.0
"""The SuperLink turns a SuperNode away until it has noticed that the one before is gone, which takes up to a minute."""
TASK_POLL_S = 0.25
"""How often the SuperExec asks for a task, instead of every second; it asks on loopback."""


def programs(folder: Path, link: StudyLink) -> list[Program]:
    """What runs at a site."""
    return [
        Program(
            name="supernode",
            command=python(HERE / "supernode.py", *supernode_options(folder, link)),
            shortest_pause_s=SHORTEST_PAUSE_S,
        ),
        Program(name="superexec", command=python(HERE / "superexec.py", *superexec_options(folder, link))),
    ]


def supernode_options(folder: Path, link: StudyLink) -> list[str]:
    """The SuperNode's: whom it dials, as whom, and where it hands out tasks."""
    options = ["--superlink", dialled(link), "--root-certificates", str(folder / (LOCAL_CA if link.mutual_tls else CA))]
    options += ["--auth-supernode-private-key", str(folder / NODE_KEY)]
    options += ["--node-config", node_config(site_folder=str(folder))]
    options += ["--host", "127.0.0.1", "--port", str(link.runtime_port), "--ssl-ca-certfile", str(folder / LOCAL_CA)]
    options += ["--ssl-certfile", str(folder / LOCAL), "--ssl-keyfile", str(folder / LOCAL_KEY)]
    return [*options, "--isolation", "process", "--superexec-auth-secret-file", str(folder / SECRET)]


def superexec_options(folder: Path, link: StudyLink) -> list[str]:
    """The SuperExec's: where it gets tasks."""
    options = ["--runtime-api-address", f"127.0.0.1:{link.runtime_port}", "--root-certificates", str(folder / LOCAL_CA)]
    return [*options, "--superexec-auth-secret-file", str(folder / SECRET)]


def dialled(link: StudyLink) -> str:
    """The coordinator, or with mutual TLS the proxy on this machine, which shows the site's certificate for Flower cannot."""
    return f"127.0.0.1:{link.forward_port}" if link.mutual_tls else link.address


def serve_site(folder: Path) -> None:
    """Serve one site. Raises: PanfmError."""
    link = read_link(folder)
    home = folder / FLOWER_HOME
    home.mkdir(exist_ok=True)
    environment = environment_for(home) | {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S)}
    serve(programs(folder, link), [], environment, link.health_port)


if __name__ == "__main__":
    run_in_folder("Take part in a study with a site's folder.", serve_site)
