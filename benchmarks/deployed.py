"""A study as it is deployed, on this machine and without containers: what benchmarks of the deployment are done to.

Both sides run as their images run them: the shipped runtimes with Flower's SuperLink, SuperNodes and SuperExecs, nginx with the
configuration that `panfm coordinator init` wrote, TLS, registered keys, the database on disk, an approved bundle. Only the hosts
are one, and the scans are made. All that is started here is ended by its own process group.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from panfm import recipes
from panfm.coordinator.admitted import admit
from panfm.coordinator.begin import begin_coordinator
from panfm.coordinator.flower import FlowerCommand
from panfm.coordinator.settings import FLOWER_HOME, PROXY, RUNS, CoordinatorSettings
from panfm.coordinator.studies import begin, compose, events_of_run, source_tree
from panfm.coordinator.submissions import is_over, submissions
from panfm.enrolment.card import read_card
from panfm.enrolment.signed_file import to_bytes
from panfm.errors import RunError
from panfm.reporting.record import Event
from panfm.site.approvals import approve
from panfm.site.bundles import Bundle
from panfm.site.bundling import build_bundle
from panfm.site.identity import SiteIdentity
from panfm.site.joining import CARD, LocalPorts, join
from panfm.site.onboarding import begin_site
from panfm.site.policy_file import read_policy
from simulation.hospitals import make_cohort

ROOT = Path(__file__).resolve().parents[1]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
UP_S = 900.0
POLL_S = 5.0
"""Between two looks; the question who is connected takes a program of Flower's three seconds of processor time."""
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """Both sides, up."""

    coordinator: Path
    sites: Mapping[str, Path]
    processes: Mapping[str, int]
    """coordinator, proxy or a site -> the process that keeps all else of it running."""

    def run(self, name: str, *words: str) -> None:
        """Ask for a run, as `panfm coordinator run --no-follow` does."""
        begin(self.coordinator, _flower(self.coordinator), compose([*words, f"name={name}"], datetime.now(UTC)))

    def run_folder(self, name: str) -> Path:
        """Where a run lies."""
        return self.coordinator / RUNS / name

    def events(self, name: str) -> list[Event]:
        """A run's record so far."""
        return events_of_run(self.run_folder(name))

    def is_over(self, name: str) -> bool:
        """Whether a run came to an end."""
        return is_over(self.events(name), submissions(self.run_folder(name)))


@contextmanager
def deployed(folder: Path, words: Sequence[str]) -> Iterator[Deployed]:
    """Make a study and bring it up.

    Args:
        words: a rehearsal's, which say how many hospitals there are and what they hold.
    Raises: RunError when not all sites connect.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is started here ends with it
    if NGINX is None:
        sys.exit(
            "this benchmark stands nginx before the SuperLink as a deployment does: install it (Debian: nginx-light)"
        )
    settings = _settings()
    coordinator = folder / "coordinator"
    now = datetime.now(UTC)
    key = begin_coordinator(coordinator, settings, None, now).public_key
    hospitals = make_cohort(recipes.load(list(words)), folder, key, lambda *_: None).hospitals
    bundle = build_bundle(source_tree())
    for site in hospitals.values():
        _onboard(coordinator, site, bundle, now)
    with ExitStack() as stack:
        started = {"coordinator": stack.enter_context(_running(_runtime("coordinator", coordinator), folder))}
        started["proxy"] = stack.enter_context(_running(_proxy(coordinator), folder))
        for name, site in hospitals.items():
            started[name] = stack.enter_context(_running(_runtime("site", site), folder))
        wait_for(lambda: _online(coordinator) == len(hospitals), "all sites connected", UP_S, folder)
        yield Deployed(coordinator=coordinator, sites=hospitals, processes=started)


def wait_for(is_so: Callable[[], bool], what: str, timeout_s: float, folder: Path) -> None:
    """Wait. Raises: RunError with the place of the logs."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise RunError(f"not within {timeout_s:.0f} s: {what}; see the logs in {folder}")
        time.sleep(POLL_S)


def _settings() -> CoordinatorSettings:
    public, superlink, health = _free_ports(3)
    return CoordinatorSettings(
        study="benchmark",
        address=f"localhost:{public}",
        public_port=public,
        superlink_port=superlink,
        health_port=health,
    )


def _onboard(coordinator: Path, site: Path, bundle: Bundle, now: datetime) -> None:
    """What the six commands do for one site, and its approval of the code."""
    begin_site(site, read_policy(site), now, lambda: None)
    card = read_card((site / CARD).read_bytes())
    kit = admit(coordinator, card, by="the benchmark", at=now, bundle_sha256=bundle.digest)
    runtime, health, forward = _free_ports(3)
    join(site, to_bytes(kit), now, LocalPorts(runtime=runtime, health=health, forward=forward))
    approve(site, bundle, by="the benchmark", at=now, key=SiteIdentity.open(site).signing_key)


def _runtime(side: str, folder: Path) -> list[str]:
    return [sys.executable, "-I", str(ROOT / "deploy" / side / "runtime" / "serve.py"), "--folder", str(folder)]


def _proxy(coordinator: Path) -> list[str]:
    """nginx as shipped, but for what it writes to, which two on one machine cannot share."""
    own = coordinator.parent / "nginx"
    own.mkdir()
    configuration = coordinator / PROXY
    configuration.write_text(configuration.read_text().replace("/tmp/panfm-proxy", str(own / "panfm-proxy")))
    assert NGINX is not None  # looked at before
    return [NGINX, "-e", "stderr", "-c", str(configuration)]


@contextmanager
def _running(command: Sequence[str], folder: Path) -> Iterator[int]:
    """A program in a process group of its own, with its log beside the study."""
    log = folder / f"{len(list(folder.glob('*.log'))):02d}-{Path(command[-1]).name}.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _online(coordinator: Path) -> int:
    with suppress(RunError):
        return sum(node.status == "online" for node in _flower(coordinator).nodes())
    return 0


def _flower(coordinator: Path) -> FlowerCommand:
    return FlowerCommand(home=coordinator / FLOWER_HOME)


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
