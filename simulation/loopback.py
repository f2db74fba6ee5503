"""A rehearsal over Flower's own programs: one SuperLink and a SuperNode per hospital, all on 127.0.0.1.

Slower than calling the apps in process (every message starts a program), and closer to a deployment: the bundle is built,
sent, approved, unpacked and run as it would be at a hospital, by the runtimes of `deploy/` that guard Flower's programs.
Without TLS, which a deployment never is. Every program is started here in a session of its own and ended by its own process
group, also on failure. Tasks are handed out to whoever knows a secret of the run, as in a deployment.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from panfm import recipes
from panfm.config import RunConfig
from panfm.coordinator.flower import FlowerCommand
from panfm.errors import PortInUseError, RunError
from panfm.reporting.record import Event, RunFinished, end_of, read_record, start_of
from panfm.reporting.telling import line_about
from panfm.site.approvals import approve
from panfm.site.bundling import build_bundle
from panfm.site.identity import SiteIdentity
from server.checkpoint import newest_checkpoint
from server.run_folder import RECORD_FILE, export_model
from server.run_record import RunRecord

log = logging.getLogger("panfm.server")

PROGRAMS = Path(sys.executable).parent
BUNDLE_ROOT = Path(__file__).resolve().parent.parent
"""Where pyproject.toml says what goes into the bundle."""
COORDINATOR_SUPEREXEC = BUNDLE_ROOT / "deploy" / "coordinator" / "runtime" / "superexec.py"
SITE_SUPEREXEC = BUNDLE_ROOT / "deploy" / "site" / "runtime" / "superexec.py"
"""What starts tasks in a deployment; started by path, for deploy/ is imported by nobody."""

START_TIMEOUT_S = 180.0
"""For programs to start and to answer: each imports torch and Flower, on a machine that may be busy."""
POLL_S = 1.0
STATUS_EVERY_S = 15.0
PATIENCE_S = 10.0
"""How long a program may take to end when it is asked to."""
_ENDED = "finished"


def run_on_loopback(config: RunConfig, runs: Path, hospitals: Mapping[str, Path]) -> None:
    """Run the study to its end.

    Args:
        runs: the coordinator's folder for runs; Flower's logs lie below the run's own folder.
        hospitals: site -> its folder.
    Raises: PortInUseError when the port is taken; RunError when Flower's programs do not start or the run fails.
    """
    check_port(config.port)
    port = config.port or _free_port()
    started = time.monotonic()
    run_folder = runs / config.run_name
    flower = _Flower(home=run_folder / "flower", runs=runs, port=port)
    flower.prepare()
    approve_own_bundle(hospitals.values())
    try:
        with contextlib.ExitStack() as programs:
            programs.enter_context(flower.superlink())
            programs.enter_context(flower.superexec())
            for site, folder in hospitals.items():
                site_port = _free_port()
                programs.enter_context(flower.supernode(site, folder, site_port))
                programs.enter_context(flower.site_superexec(site, site_port))
            flower.wait_for_nodes(len(hospitals))
            told = len(_events(run_folder / RECORD_FILE))  # by an earlier process
            run_id = flower.submit(patient(config))
            _follow(run_folder / RECORD_FILE, flower, run_id, told)
    except KeyboardInterrupt:
        _end_record(run_folder, "stopped", "stopped by a person", time.monotonic() - started)
        raise
    except RunError as error:
        _end_record(run_folder, "incomplete", str(error), time.monotonic() - started)
        raise


def approve_own_bundle(sites: Iterable[Path]) -> str:
    """Let each pretend hospital approve the bundle of this checkout, and nothing else, as a person would after a review.

    Returns: its SHA-256.
    """
    bundle = build_bundle(BUNDLE_ROOT)
    for folder in sites:
        key = SiteIdentity.open(folder).signing_key
        approve(folder, bundle, by="the rehearsal", at=datetime.now(UTC), key=key)
    return bundle.digest


def patient(config: RunConfig) -> RunConfig:
    """The run with time to join: programs must start to answer, which an in-process recipe does not reckon with."""
    timeout_s = max(config.federation.join_timeout_s, START_TIMEOUT_S)
    return replace(config, federation=replace(config.federation, join_timeout_s=timeout_s))


def _end_record(run_folder: Path, status: str, reason: str, seconds: float) -> None:
    """Say the end where the coordinator's program was ended before it could, and export its last checkpoint."""
    record = run_folder / RECORD_FILE
    events = _events(record)
    start = start_of(events)
    if start is None or end_of(events) is not None:
        return
    model = newest_checkpoint(run_folder, start.run).checkpoint.model
    rounds_done = model.card.round
    exported = export_model(run_folder, model).name if rounds_done else ""
    finished = RunFinished(status=status, reason=reason, rounds_done=rounds_done, seconds=seconds, model=exported)
    RunRecord(run_folder).write(finished)


@dataclass(frozen=True, slots=True)
class _Flower:
    """Flower's programs of one rehearsal."""

    home: Path
    runs: Path
    port: int

    def prepare(self) -> None:
        """Flower's own configuration, away from the person's, and the secret without which no task is handed out."""
        self.home.mkdir(parents=True, exist_ok=True)
        link = {"address": f"127.0.0.1:{self.port}", "insecure": True}
        (self.home / "config.toml").write_text(
            tomli_w.dumps({"superlink": {"default": "rehearsal", "rehearsal": link}})
        )
        secret = os.open(self._secret, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(secret, "wb") as file:
            file.write(secrets.token_bytes(48))

    @property
    def _secret(self) -> Path:
        return self.home / "superexec.secret"

    @contextlib.contextmanager
    def superlink(self) -> Iterator[None]:
        """The coordinator's program."""
        flags = [*_listening(self.port), "--disable-runtime-dependency-installation", *self._isolation()]
        with self._running([str(PROGRAMS / "flower-superlink"), *flags], "superlink"):
            self._wait_until_up()
            yield

    @contextlib.contextmanager
    def superexec(self) -> Iterator[None]:
        """What starts the ServerApp for the SuperLink."""
        with self._running(self._superexec(COORDINATOR_SUPEREXEC, self.port), "superexec"):
            yield

    @contextlib.contextmanager
    def supernode(self, site: str, folder: Path, port: int) -> Iterator[None]:
        """One hospital's program, which hands out its tasks at the port."""
        flags = [*_listening(port), "--superlink", f"127.0.0.1:{self.port}", *self._isolation()]
        flags += ["--node-config", f"site-folder={json.dumps(str(folder))}"]
        with self._running([str(PROGRAMS / "flower-supernode"), *flags], f"supernode-{site}"):
            yield

    @contextlib.contextmanager
    def site_superexec(self, site: str, port: int) -> Iterator[None]:
        """What starts the guard for a hospital's SuperNode."""
        with self._running(self._superexec(SITE_SUPEREXEC, port), f"superexec-{site}"):
            yield

    def _isolation(self) -> list[str]:
        return ["--isolation", "process", "--superexec-auth-secret-file", str(self._secret)]

    def _superexec(self, program: Path, port: int) -> list[str]:
        flags = ["--insecure", "--runtime-api-address", f"127.0.0.1:{port}"]
        return [sys.executable, "-I", str(program), *flags, "--superexec-auth-secret-file", str(self._secret)]

    def wait_for_nodes(self, number: int) -> None:
        """Until so many SuperNodes are online. Raises: RunError."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if sum(node.status == "online" for node in self.command.nodes()) >= number:
                return
            time.sleep(POLL_S)
        raise RunError(
            f"not all {number} SuperNodes came up within {START_TIMEOUT_S:.0f} s; see the logs in {self.home}"
        )

    def submit(self, config: RunConfig) -> str:
        """Build the bundle, submit the run, and return its id."""
        return self.command.submit(BUNDLE_ROOT, recipes.to_yaml(config))

    @property
    def command(self) -> FlowerCommand:
        """Flower's command line, for this SuperLink."""
        return FlowerCommand(home=self.home, link="rehearsal", program=PROGRAMS / "flwr")

    @contextlib.contextmanager
    def _running(self, command: Sequence[str], name: str) -> Iterator[None]:
        with (self.home / f"{name}.log").open("w") as output:
            process = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self.home,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                yield
            finally:
                _end(process)

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.2)
        raise RunError(
            f"the SuperLink did not open port {self.port} within {START_TIMEOUT_S:.0f} s; see {self.home}/superlink.log"
        )

    def _environment(self) -> dict[str, str]:
        ours = {
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "PANFM_RUNS_DIR": str(self.runs),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(BUNDLE_ROOT), os.environ.get("PYTHONPATH")))),
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        return os.environ | ours


def _events(record: Path) -> list[Event]:
    return list(read_record(record)) if record.exists() else []


def _follow(record: Path, flower: _Flower, run_id: str, told: int = 0) -> None:
    """Say what the record says until it ends.

    Args:
        told: events that stood there before.
    Raises: RunError when the run fails or is incomplete.
    """
    asked = time.monotonic()
    while True:
        events = _events(record)
        for event in events[told:]:
            _tell(event)
            if isinstance(event, RunFinished):
                if event.status != "complete":
                    raise RunError(f"the run is {event.status}: {event.reason}")
                return
        told = len(events)
        if time.monotonic() - asked > STATUS_EVERY_S:
            asked = time.monotonic()
            if (status := flower.command.run_status(run_id)).startswith(_ENDED) and not _has_ended(
                record
            ):  # not even meanwhile
                raise RunError(f"Flower ended the run ({status}) before its record did; see the logs in {flower.home}")
        time.sleep(POLL_S)


def _has_ended(record: Path) -> bool:
    return end_of(_events(record)) is not None


def _tell(event: Event) -> None:
    if (line := line_about(event)) is not None:
        log.log(logging.WARNING if line.is_trouble else logging.INFO, line.words)


def _listening(port: int) -> list[str]:
    return ["--insecure", "--host", "127.0.0.1", "--port", str(port)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises: PortInUseError when the port is taken; 0 never is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise PortInUseError(
                f"port {port} on 127.0.0.1 is in use; stop the program that has it, or give another port= (0 takes a free one)"
            ) from error


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and whatever it started: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
