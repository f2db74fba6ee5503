"""A hostile coordinator and two hospitals with the same secret on disk: one on plain Flower, one on our runtime.

An attack is one bundle, sent to both in one run over Flower's own programs on 127.0.0.1; what came home from each is read from
a file that the attacker's ServerApp writes. So each test shows in the same breath that the attack works, and that it fails here.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.cli.build import build_fab_from_files
from flwr.cli.typing import SuperLinkConnection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from panfm.signing import public_hex
from panfm.site.audit_chain import Entry
from panfm.site.audit_log import AuditLog, inspect_folder
from panfm.site.identity import identity_of, read_public_key, write_identity
from panfm.site.policy import Policy, PrivacyDemand, PrivacyMode, TaskKind
from panfm.site.policy_file import write_policy

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
PLAIN_SUPEREXEC = PROGRAMS / "flower-superexec"
SITE_SUPEREXEC = ROOT / "deploy" / "site" / "runtime" / "superexec.py"
COORDINATOR_SUPEREXEC = ROOT / "deploy" / "coordinator" / "runtime" / "superexec.py"

SCAN = "sub-4711 voxels 0.48151623"
"""What a hospital must never lose."""
PATIENCE_S = 120.0
"""For programs that each import Flower and torch on a machine that may be busy; reaching it fails the test."""
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}

# ---- bundles ------------------------------------------------------------------------------------------------------------

QUESTION_ALL = """
import json, pathlib
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()

def words(reply):
    if reply.has_error():
        return f"error {reply.error.code}: {reply.error.reason}"
    return "\\n".join(f"{key}={value}" for record in reply.content.values() for key, value in record.items())

@app.main()
def main(grid, context):
    nodes = sorted(grid.get_node_ids())
    question = RecordDict({"question": ConfigRecord({"of": "whom"})})
    ids = list(grid.push_messages([Message(question, node, "query") for node in nodes]))
    asked, came = dict(zip(ids, nodes)), {}
    while len(came) < len(nodes):
        for reply in grid.pull_messages([i for i in asked if asked[i] not in came]):
            came[asked[reply.metadata.reply_to_message_id]] = words(reply)
    home = pathlib.Path(HOME_FILE)
    home.with_suffix(".part").write_text(json.dumps(came))
    home.with_suffix(".part").rename(home)
"""
"""The attacker's ServerApp: asks every node once, and writes down what came home."""

CLIENT_APP = """
import pathlib
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def query(message, context):
    folder = pathlib.Path(context.node_config["site-folder"])
    return Message(RecordDict({"loot": ConfigRecord({"loot": str(LOOT)})}), reply_to=message)
"""
"""A ClientApp that answers with the value of a Python expression."""


def client_app(loot: str) -> str:
    """Source of a ClientApp that sends the value of an expression home; it may use `folder` and `pathlib`."""
    return CLIENT_APP.replace("LOOT", loot)


def bundle_of(files: Mapping[str, str], name: str, **components: str) -> bytes:
    """A bundle as Flower builds it."""
    app = {"publisher": "attacker", "components": components}
    project = {"project": {"name": name, "version": "1.0.0"}, "tool": {"flwr": {"app": app}}}
    sources = {"pyproject.toml": tomli_w.dumps(project), **files}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a name of pathspec's that Flower uses
        return build_fab_from_files({path: text.encode() for path, text in sources.items()})[0]


def asking_bundle(client: str, home: Path, name: str, more: Mapping[str, str] | None = None) -> bytes:
    """A bundle of the attacker's ServerApp and a ClientApp."""
    server = QUESTION_ALL.replace("HOME_FILE", repr(str(home)))
    files = {"server/__init__.py": "", "server/app.py": server, "client/__init__.py": "", "client/app.py": client}
    return bundle_of({**files, **(more or {})}, name, serverapp="server.app:app", clientapp="client.app:app")


# ---- sites --------------------------------------------------------------------------------------------------------------


def make_site(folder: Path, approved: Sequence[str] = ()) -> Path:
    """A hospital's folder: a scan, a policy that approves these bundles, an identity and its audit log."""
    folder.mkdir(parents=True)
    (folder / "scan.txt").write_text(SCAN)
    identity = identity_of(Ed25519PrivateKey.generate())
    write_identity(folder, identity, None)
    AuditLog.create(folder, identity.signing_key, {})
    approve_by_policy(folder, approved)
    return folder


def approve_by_policy(folder: Path, digests: Sequence[str]) -> None:
    """Write the policy anew with these bundles approved; the guard reads it for every task."""
    policy = Policy(
        site=folder.name,
        coordinator_keys=(public_hex(Ed25519PrivateKey.generate()),),
        organs=("brain",),
        tasks=(TaskKind.pretrain,),
        privacy=PrivacyDemand(mode=PrivacyMode.none),
        approved_bundles=tuple(digests),
    )
    write_policy(folder, policy)


def audited(folder: Path, event: str, **about: object) -> list[Entry]:
    """The entries of a site's audit log of one kind that say this; the log is found to be whole first."""
    found = inspect_folder(folder, read_public_key(folder))
    assert found.fault is None
    return [e for e in found.entries if e.event == event and about.items() <= dict(e.about).items()]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ---- programs -----------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, look: Callable[[], bool], logs: Path) -> None:
    """Until it is so; past all patience the test fails with the ends of Flower's logs."""
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        if time.monotonic() > deadline:
            ends = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in sorted(logs.rglob("*.log")))
            raise AssertionError(f"{what}: not within {PATIENCE_S:.0f} s\n{ends}")
        time.sleep(0.1)


@contextlib.contextmanager
def running(command: Sequence[str | Path], home: Path, name: str) -> Iterator[Path]:
    """A program in a session of its own, ended with all that it started; gives its log."""
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | _QUIET | {"FLWR_HOME": str(home), "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}
    with (home / f"{name}.log").open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=home,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield home / f"{name}.log"
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _insecure_at(port: int) -> list[str]:
    return ["--insecure", "--host", "127.0.0.1", "--port", str(port), "--isolation", "process"]


def _superexec(program: Path, port: int) -> list[str | Path]:
    start: list[str | Path] = [program] if program.suffix != ".py" else [sys.executable, "-I", program]
    return [*start, "--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]


@dataclass(frozen=True)
class Coordinator:
    """A SuperLink with its SuperExec."""

    port: int
    home: Path

    def submit(self, bundle: bytes, prompt: str = "") -> int:
        """Start a run as anyone can who reaches the port: no key is asked for. Returns: its id, or 0."""
        connection = SuperLinkConnection(name="attack", address=f"127.0.0.1:{self.port}", insecure=True)
        client = init_http_client_from_connection(connection)
        with contextlib.closing(client):
            fab = Fab(hash_str=sha256(bundle), content=bundle)
            return int(client.StartRun(StartRunRequest(fab=fab, user_prompt=prompt)).run_id)


@contextlib.contextmanager
def coordinator(home: Path, *, superexec: Path, with_secret: bool) -> Iterator[Coordinator]:
    """Start one, and end it."""
    port, secret = free_port(), home / "superexec.secret"
    home.mkdir(parents=True)
    secret.write_bytes(secrets.token_bytes(48))
    shared: list[str] = ["--superexec-auth-secret-file", str(secret)] if with_secret else []
    link: list[str | Path] = [
        PROGRAMS / "flower-superlink",
        *_insecure_at(port),
        "--disable-runtime-dependency-installation",
        *shared,
    ]
    with running(link, home, "superlink"), running([*_superexec(superexec, port), *shared], home, "superexec"):
        wait_for("the SuperLink's port", lambda: _answers(port), home)
        yield Coordinator(port=port, home=home)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@dataclass(frozen=True)
class Hospital:
    """A SuperNode with its SuperExec."""

    node: str
    """Flower's number of it."""
    folder: Path
    home: Path


@contextlib.contextmanager
def hospital(folder: Path, home: Path, at: Coordinator, superexec: Path) -> Iterator[Hospital]:
    """Start one, and end it."""
    port = free_port()
    flags = [*_insecure_at(port), "--superlink", f"127.0.0.1:{at.port}"]
    flags += ["--node-config", f"site-folder={json.dumps(str(folder))}"]
    node: list[str] = []

    def has_joined() -> bool:
        node[:] = re.findall(r"SuperNode ID: (\d+)", log.read_text())
        return bool(node)

    with (
        running([PROGRAMS / "flower-supernode", *flags], home, "supernode") as log,
        running(_superexec(superexec, port), home, "superexec"),
    ):
        wait_for("the SuperNode", has_joined, home)
        yield Hospital(node=node[0], folder=folder, home=home)


@dataclass(frozen=True)
class Federation:
    """The hostile coordinator and the two hospitals."""

    coordinator: Coordinator
    plain: Hospital
    ours: Hospital
    folder: Path

    def home_file(self, name: str) -> Path:
        """Where an attacker's ServerApp writes what came home."""
        return self.folder / f"{name}.json"

    def run(self, bundle: bytes, name: str) -> tuple[str, str]:
        """Run a bundle that writes to `home_file(name)`. Returns: what came home from (plain, ours)."""
        assert self.coordinator.submit(bundle), "the SuperLink did not take the run"
        home = self.home_file(name)
        wait_for(f"what came home of {name}", home.exists, self.folder)
        came = json.loads(home.read_text())
        return came[self.plain.node], came[self.ours.node]


@contextlib.contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """Start it, and end it."""
    plain, ours = make_site(folder / "sites" / "plain"), make_site(folder / "sites" / "ours")
    with contextlib.ExitStack() as programs:
        link = programs.enter_context(coordinator(folder / "link", superexec=PLAIN_SUPEREXEC, with_secret=False))
        one = programs.enter_context(hospital(plain, folder / "home-plain", link, PLAIN_SUPEREXEC))
        two = programs.enter_context(hospital(ours, folder / "home-ours", link, SITE_SUPEREXEC))
        yield Federation(coordinator=link, plain=one, ours=two, folder=folder)
