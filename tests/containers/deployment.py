"""A whole study in containers: coordinator, proxy and hospitals from the shipped images, on a network without a route out.

It comes up as a hospital would bring it up: every file in it is made by the six commands of onboarding, run inside the images.
What is looked at from outside (records, logs, processes) is looked at without the containers' help.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from panfm.coordinator.submissions import is_over, submissions
from panfm.reporting.record import Event, RoundFinished, RunFinished, SiteJoined, end_of, read_record
from tests.containers.cohort import HOSPITALS, Hospital, lay_out
from tests.containers.engine import (
    COORDINATOR_IMAGE,
    HARDENED,
    OWNER,
    PROXY_IMAGE,
    SITE_IMAGE,
    Engine,
    podman,
    processes_of,
)

STUDY = "pilot"
RECIPE = "smoke"
ONE_THREAD = ("--env", "OMP_NUM_THREADS=1", "--env", "OMP_WAIT_POLICY=PASSIVE")
OPENED = {
    "public": "[updates, counts, metrics]",
    "bounds": "{rounds: {most: 1000}}",
    "min_subjects": "2",
    "min_subjects_per_organ": "2",
    "rounds_per_day": "100000",
    "min_free_memory_gib": "0",
}
"""What the officer of each of these hospitals fills in."""
UP_S = 600.0
POLL_S = 0.5


@dataclass(slots=True)
class Deployment:
    """One study; `up` brings it up, `down` removes every trace."""

    data: Path
    """The folder of real scans."""
    mutual_tls: bool = False
    hospitals: Sequence[Hospital] = HOSPITALS
    disk_mb: int = 0
    """Size of each folder's own small disk; 0: they lie in volumes."""
    engine: Engine = field(default_factory=Engine)
    coordinator_folder: Path = Path()
    site_folders: dict[str, Path] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each step of coming up took."""

    # ---- coming up and going ---------------------------------------------------------------------------------------

    def up(self) -> None:
        """Prepare scans, onboard everybody, start everything, wait until all sites are connected."""
        self.engine.network()
        self.coordinator_folder = self._folder("coordinator")
        with self._timed("data"):
            for hospital in self.hospitals:
                self.site_folders[hospital.site] = self._folder(hospital.site)
                self._prepare_scans(hospital)
        with self._timed("init"):
            self._init()
        with self._timed("start coordinator"):
            self.start_coordinator()
        for hospital in self.hospitals:
            with self._timed(f"onboard {hospital.site}"):
                self.onboard(hospital)
                self.start_site(hospital.site)
        with self._timed("connect"):
            self.wait_for(lambda: len(self.online()) == len(self.hospitals), "all sites online", UP_S)

    def down(self) -> None:
        """Remove everything."""
        self.engine.remove()

    def _prepare_scans(self, hospital: Hospital) -> None:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            export, keys = Path(place) / "scans", Path(place) / "keys"
            lay_out(hospital, self.data, export)
            keys.mkdir()
            _hand_to_owner(Path(place))
            options = (*ONE_THREAD, "--network", "none", *self.site_volume(hospital.site))
            options += ("--volume", f"{export}:/scans:ro", "--volume", f"{keys}:/keys")
            index = ("panfm", "data", "index", "/scans", "--out", "/site", "--key", "/keys/pseudonym.key")
            self.engine.run(SITE_IMAGE, options, (*index, *hospital.index_options))
            prepare = ("panfm", "data", "prepare", "/site", "--recipe", RECIPE, "--workers", "1")
            self.engine.run(SITE_IMAGE, options, prepare)

    def _init(self) -> None:
        words = [
            "panfm",
            "coordinator",
            "init",
            "--folder",
            "/coordinator",
            "--study",
            STUDY,
            "--address",
            "coordinator:8443",
        ]
        words += ["--mutual-tls"] if self.mutual_tls else []
        self.engine.run(COORDINATOR_IMAGE, ("--network", "none", *self._coordinator_volume()), words)

    def onboard(self, hospital: Hospital) -> None:
        """The site's own commands, and the coordinator's for it."""
        site, folder = hospital.site, self.site_folders[hospital.site]
        key = self._public_key_of_coordinator()
        words = ("panfm", "site", "init", "--folder", "/site", "--site", site, "--coordinator-key", key)
        made = self.in_new_site(site, *words, "--organs", hospital.organ, "--no-passphrase").stdout
        open_policy(folder / "policy.yaml")
        fingerprint = re.search(r"^fingerprint\s+(.+)$", made, re.MULTILINE)
        assert fingerprint is not None, made
        self._carry(folder / "site_card.json", self.coordinator_folder / f"{site}.card.json")
        self.in_coordinator(
            *("panfm", "coordinator", "admit", f"/coordinator/{site}.card.json", "--folder", "/coordinator"),
            *("--fingerprint", fingerprint.group(1), "--by", "the tests"),
        )
        self._carry(self.coordinator_folder / "kits" / f"{site}.kit.json", folder / "kit.json")
        self.in_new_site(site, "panfm", "site", "join", "/site/kit.json", "--folder", "/site")
        self.approve(site)

    def approve(self, site: str) -> None:
        """The site approves the bundle that the coordinator built of the image's sources, if it is the one that the kit names."""
        if not (built := self.coordinator_folder / "study.fab").exists():
            self.in_coordinator("panfm", "bundle", "/opt/panfm", "--out", "/coordinator/study.fab")
        self._carry(built, self.site_folders[site] / "study.fab")
        named = json.loads((self.site_folders[site] / "kit.json").read_text())["bundle_sha256"]
        words = ("panfm", "site", "approve", "/site/study.fab", "--folder", "/site", "--sha256", named, "--by", "tests")
        self.in_new_site(site, *words)

    def preflight(self, site: str) -> subprocess.CompletedProcess[str]:
        """What the site's machine says of itself, in the study's network."""
        words = ("panfm", "site", "preflight", "--folder", "/site")
        options = ("--network", self.engine.name, *self.site_volume(site))
        return self.engine.run(SITE_IMAGE, options, words, check=False)

    def start_coordinator(self) -> None:
        """Coordinator and proxy; the proxy shares the coordinator's network and can only read its folder."""
        podman(
            "rm", "--force", "--ignore", "--time", "0", self.container("proxy")
        )  # it lives in the other one's network
        network = ("--network", self.engine.name, "--network-alias", "coordinator")
        name = self.engine.start(
            "coordinator", COORDINATOR_IMAGE, (*HARDENED, *ONE_THREAD, *network, *self._coordinator_volume())
        )
        self.start_proxy(name)

    def start_proxy(self, coordinator: str) -> None:
        """nginx before the coordinator."""
        options = (*HARDENED, "--network", f"container:{coordinator}", *self._coordinator_volume(":ro"))
        self.engine.start(
            "proxy", PROXY_IMAGE, options, ("nginx", "-e", "stderr", "-c", "/coordinator/proxy/nginx.conf")
        )

    def start_site(self, site: str, *options: str) -> None:
        """One hospital's runtime, with further options of podman's."""
        words = (*HARDENED, *ONE_THREAD, "--network", self.engine.name, *self.site_volume(site), *options)
        self.engine.start(site, SITE_IMAGE, words)

    def mend(self) -> None:
        """Start again what is not there, and wait until all sites are connected."""
        running = set(podman("ps", "--format", "{{.Names}}").stdout.split())
        if not {self.container("coordinator"), self.container("proxy")} <= running:
            self.start_coordinator()
        for site in self.site_folders:
            if self.container(site) not in running:
                self.start_site(site)
        self.wait_for(lambda: self.online() >= set(self.site_folders), "all sites online", UP_S)

    # ---- asking and acting -----------------------------------------------------------------------------------------

    def container(self, what: str) -> str:
        """A container's name: coordinator, proxy, or a site."""
        return f"{self.engine.name}-{what}"

    def in_coordinator(
        self, *words: str, check: bool = True, timeout_s: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command where the coordinator runs."""
        return podman("exec", self.container("coordinator"), *words, check=check, timeout_s=timeout_s)

    def in_new_site(self, site: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a site's folder, in a container of its own without a network."""
        return self.engine.run(SITE_IMAGE, ("--network", "none", *self.site_volume(site)), words, check=check)

    def online(self) -> set[str]:
        """Sites that the coordinator sees connected."""
        words = ("panfm", "coordinator", "status", "--folder", "/coordinator", "--json")
        done = self.in_coordinator(*words, check=False)
        try:
            return {str(site["site"]) for site in json.loads(done.stdout)["sites"] if site["state"] == "online"}
        except (ValueError, KeyError):
            return set()

    def run(self, name: str, *settings: str) -> None:
        """Ask for a run, and do not wait for it."""
        words = (
            "panfm",
            "coordinator",
            "run",
            "--folder",
            "/coordinator",
            "--no-follow",
            f"recipe={RECIPE}",
            f"name={name}",
        )
        self.in_coordinator(*words, *settings)

    def events(self, name: str) -> list[Event]:
        """A run's record so far."""
        record = self.run_folder(name) / "record.jsonl"
        return list(read_record(record)) if record.exists() else []

    def run_folder(self, name: str) -> Path:
        """Where a run lies on this machine."""
        return self.coordinator_folder / "runs" / name

    def wait_for_end(self, name: str, timeout_s: float) -> RunFinished:
        """The end of a run."""

        def over() -> bool:
            return is_over(self.events(name), submissions(self.run_folder(name)))

        self.wait_for(over, f"run {name} over", timeout_s)
        end = end_of(self.events(name))
        assert end is not None
        return end

    def wait_for(self, what: Callable[[], bool], words: str, timeout_s: float) -> None:
        """Wait until something is so. Raises: TimeoutError with the ends of all logs."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s:.0f} s: {words}\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self, tail: int = 15) -> str:
        """The ends of all containers' logs."""
        parts = []
        for name in self.engine.containers:
            said = podman("logs", "--tail", str(tail), name, check=False)
            parts.append(f"--- {name}\n{said.stdout}{said.stderr}")
        return "\n".join(parts)

    def processes(self, what: str, needle: str) -> list[int]:
        """Processes of a container whose command line holds a word."""
        return [pid for pid, _, words in processes_of(self.container(what)) if needle in words]

    def workers(self, what: str, program: str = "guard.py") -> list[int]:
        """Processes in which a task is worked at now: forks of the program that waits for tasks, at a site the guard."""
        alike = {pid: parent for pid, parent, words in processes_of(self.container(what)) if program in words}
        return [pid for pid, parent in alike.items() if parent in alike]

    # ---- small parts -----------------------------------------------------------------------------------------------

    def _folder(self, what: str) -> Path:
        return self.engine.limited_folder(what, self.disk_mb) if self.disk_mb else self.engine.volume(what)

    def _source(self, what: str) -> str:
        """What podman mounts: a folder, or a volume by its name."""
        return str(self._limited(what)) if self.disk_mb else f"{self.engine.name}-{what}"

    def _limited(self, what: str) -> Path:
        return self.coordinator_folder if what == "coordinator" else self.site_folders[what]

    def _coordinator_volume(self, mode: str = "") -> tuple[str, ...]:
        return "--volume", f"{self._source('coordinator')}:/coordinator{mode}"

    def site_volume(self, site: str) -> tuple[str, ...]:
        return "--volume", f"{self._source(site)}:/site"

    def _public_key_of_coordinator(self) -> str:
        script = (
            "from pathlib import Path; from panfm.signing import load_or_make_key, public_hex; "
            "print(public_hex(load_or_make_key(Path('/coordinator/runs/coordinator.key'))))"
        )
        return self.in_coordinator("python", "-c", script).stdout.strip()

    def _carry(self, source: Path, target: Path) -> None:
        """A file that travels by post."""
        shutil.copyfile(source, target)
        os.chown(target, OWNER, OWNER)

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[step] = time.monotonic() - started


def open_policy(path: Path, settings: dict[str, str] | None = None) -> None:
    """What the hospital's officer fills in."""
    text = path.read_text()
    for name, value in (OPENED if settings is None else settings).items():
        text, found = re.subn(rf"^{name}: .*$", f"{name}: {value}", text, flags=re.MULTILINE)
        assert found == 1, name
    path.write_text(text)


def kill(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to processes, by their ids; those that are gone are gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def rounds_of(events: Sequence[Event]) -> list[int]:
    """Numbers of the rounds that stand on record as finished."""
    return [event.round for event in events if isinstance(event, RoundFinished)]


def joined(events: Sequence[Event]) -> set[str]:
    """Sites that are on record as having joined."""
    return {event.site for event in events if isinstance(event, SiteJoined)}


def _hand_to_owner(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER)
