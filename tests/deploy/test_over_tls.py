"""The whole of both sides on this machine: runtimes, nginx on both ends with mutual TLS, a registered key, an approved bundle.

What is asked for at the coordinator is answered by the site's code; a part that is killed comes back; nothing is left at the end.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from panfm.cli.health import ask
from panfm.coordinator.flower import FlowerCommand
from panfm.coordinator.settings import DATABASE, FLOWER_HOME, PROXY, SERVER_CA
from panfm.enrolment.node_key import new_node_key
from panfm.errors import RunError
from panfm.site.bundles import read_bundle
from panfm.site.joining import FORWARD, read_link
from panfm.site.study_door import is_registered
from tests.deploy.enrolled import Enrolled, enrol
from tests.deploy.test_proxies import NGINX, nginx

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed on this machine")]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 600.0

PYPROJECT = """
[project]
name = "question"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "tests"
fab-include = ["server/*.py", "client/*.py"]
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
composed = ""
"""
SERVER = """
import json, pathlib, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    answers = []
    while len(answers) < 2:
        for node in grid.get_nodes():
            question = RecordDict({"q": ConfigRecord({"number": len(answers)})})
            (reply,) = grid.send_and_receive([Message(question, node.node_id, "query")])
            if reply.has_content():  # or it was on its way to a SuperNode that is gone, which is noticed after a minute
                answers.append(dict(reply.content.config_records["answer"]) | {"node": node.name})
        time.sleep(.2)
    place = pathlib.Path(context.run_config["composed"])
    place.with_suffix(".part").write_text(json.dumps(answers))
    place.with_suffix(".part").rename(place)
"""
CLIENT = """
import os
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    said = {"process": os.getpid(), "number": message.content.config_records["q"]["number"]}
    said["folder"] = context.node_config["site-folder"]
    return Message(RecordDict({"answer": ConfigRecord(said)}), reply_to=message)
"""


def _app(folder: Path) -> Path:
    """A source tree that asks each site a question."""
    files = {"pyproject.toml": PYPROJECT, "server/app.py": SERVER, "client/app.py": CLIENT}
    for name, text in {**files, "server/__init__.py": "", "client/__init__.py": ""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def _bundle_digest(app: Path, folder: Path) -> str:
    """As Flower's own builder makes it."""
    flwr = Path(sys.executable).with_name("flwr")
    environment = os.environ | {
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    subprocess.run([flwr, "build", "--app", app], cwd=folder, env=environment, check=True, capture_output=True)
    (bundle,) = folder.glob("*.fab")
    return read_bundle(bundle.read_bytes()).digest


@contextmanager
def _serving(side: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A runtime as its image starts it."""
    command = [sys.executable, "-I", str(ROOT / "deploy" / side / "runtime" / "serve.py"), "--folder", str(folder)]
    with (folder.parent / f"{side}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        process.kill()
        process.wait()


def _until(what: str, is_so: Callable[[], object], logs: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            ends = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs.glob("*.log"))
            pytest.fail(f"{what}: not within {PATIENCE_S:.0f} s\n{ends}")
        time.sleep(0.5)


def _lives(port: int, service: str = "") -> bool:
    with contextlib.suppress(RunError):
        return ask(f"127.0.0.1:{port}", service) == "SERVING"
    return False


@dataclass(frozen=True)
class Both:
    """The two sides, up."""

    enrolled: Enrolled
    folder: Path
    app: Path
    coordinator: subprocess.Popen[bytes]
    site: subprocess.Popen[bytes]

    def asked(self, name: str) -> list[dict[str, object]]:
        """What the site answered to a run of the app."""
        place = self.folder / name
        FlowerCommand(self.enrolled.coordinator / FLOWER_HOME).submit(self.app, str(place))
        _until(f"answers of {name}", place.exists, self.folder)
        answers: list[dict[str, object]] = json.loads(place.read_text())
        return answers


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Started as an engineer would, with mutual TLS."""
    folder = tmp_path_factory.mktemp("both")
    app = _app(folder / "question")
    enrolled = enrol(folder, mutual_tls=True, bundle=_bundle_digest(app, folder))
    (site,) = enrolled.sites
    link = read_link(site)
    with contextlib.ExitStack() as stack:
        stack.enter_context(nginx(enrolled.coordinator / PROXY, enrolled.settings.public_port, folder / "proxy"))
        stack.enter_context(nginx(site / FORWARD, link.forward_port, folder / "forward"))
        processes = [
            stack.enter_context(_serving(side, place))
            for side, place in (("coordinator", enrolled.coordinator), ("site", site))
        ]
        _until("the coordinator's health", lambda: _lives(enrolled.settings.health_port), folder)
        _until("the site's health", lambda: _lives(link.health_port), folder)
        yield Both(enrolled, folder, app, *processes)


def _child(parent: int, program: str) -> int:
    """The process that a runtime keeps for one of its programs; 0 while there is none."""
    for path in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            if program in Path(f"/proc/{path}/cmdline").read_text():
                return int(path)
    return 0


def test_questions_are_answered_by_approved_code_each_in_its_process_and_under_the_registered_name(both: Both) -> None:
    first, second = both.asked("first")
    assert (first["node"], second["node"]) == ("north", "north")
    assert (first["number"], second["number"]) == (0, 1)
    assert first["folder"] == str(both.enrolled.sites[0])
    assert first["process"] != second["process"]


def test_everything_on_disk_is_its_owner_s_alone(both: Both) -> None:
    written = [both.enrolled.coordinator / DATABASE, both.enrolled.coordinator / FLOWER_HOME]
    assert [path.stat().st_mode & 0o077 for path in written] == [0, 0]


def test_nothing_but_fleet_is_open_to_the_outside(both: Both) -> None:
    authority = both.enrolled.coordinator / SERVER_CA
    context = ssl.create_default_context(cafile=authority)
    answer = httpx.post(f"https://localhost:{both.enrolled.settings.public_port}/v1/control/list-nodes", verify=context)
    assert answer.status_code == 400, "not even without a certificate, let alone the path"


def test_site_hears_whether_its_node_is_registered(both: Both, tmp_path: Path) -> None:
    site = both.enrolled.sites[0]
    assert is_registered(site, read_link(site))
    for name in ("study", "keys"):
        shutil.copytree(site / name, tmp_path / name)
    (tmp_path / "keys" / "node.key").write_bytes(new_node_key())
    assert not is_registered(tmp_path, read_link(site))


@pytest.mark.parametrize("program", ["supernode.py", "superexec.py"])
def test_part_of_the_site_that_is_killed_comes_back_and_the_next_run_is_answered(both: Both, program: str) -> None:
    port = read_link(both.enrolled.sites[0]).health_port
    killed = _child(both.site.pid, program)
    os.kill(killed, signal.SIGKILL)
    _until("its absence is told", lambda: not _lives(port, program.removesuffix(".py")), both.folder)
    _until(f"another {program}", lambda: _child(both.site.pid, program) not in {0, killed}, both.folder)
    _until("the site's health", lambda: _lives(port), both.folder)
    assert len(both.asked(f"after-{program}")) == 2


def test_both_end_when_told_to_and_leave_nothing_running(both: Both) -> None:
    """The last test of the file: it ends what the others need."""
    groups = [
        _child(side.pid, program) for side, program in ((both.coordinator, "superlink"), (both.site, "supernode"))
    ]
    assert all(groups)
    for side in (both.coordinator, both.site):
        side.terminate()
    assert [side.wait(60) for side in (both.coordinator, both.site)] == [0, 0]
    assert not [number for number in groups if Path(f"/proc/{number}").exists()]
