"""Podman, as far as these tests need it: all containers, networks and volumes have names of the test and are removed at its end.

The tests look into the volumes and at the processes from outside, so that looking changes nothing; that needs the rights of
whoever runs the containers: root, or `podman unshare` around the tests.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "panfm-test-"
COORDINATOR_IMAGE = os.environ.get("PANFM_TEST_COORDINATOR", "localhost/panfm-coordinator")
SITE_IMAGE = os.environ.get("PANFM_TEST_SITE", "localhost/panfm-site")
PROXY_IMAGE = os.environ.get("PANFM_TEST_NGINX", "localhost/panfm-test-nginx:bookworm")
HARDENED = (
    *("--read-only", "--tmpfs", "/tmp:rw,size=2g,mode=1777", "--cap-drop=all", "--security-opt", "no-new-privileges"),
    *("--user", "10001:10001", "--init"),
)
"""As deploy/ ships it."""
OWNER = 10001
"""Whom the images run as."""
INSTALLED = "/opt/panfm/venv/lib/python3.11/site-packages"
"""Where panfm lies in the images."""
_QUICK_S = 600.0


def code_of_checkout() -> tuple[str, ...]:
    """Mounts that put a checkout's code over that of the images, where PANFM_TEST_TREE names one: to try a change in seconds.

    What is published is measured without.
    """
    tree = os.environ.get("PANFM_TEST_TREE", "")
    if not tree:
        return ()
    mounts = {"panfm": f"{INSTALLED}/panfm", **{name: f"/opt/panfm/{name}" for name in ("client", "server", "deploy")}}
    return tuple(word for name, place in mounts.items() for word in ("--volume", f"{tree}/{name}:{place}:ro"))


class EngineError(Exception):
    """Podman did not do what it was told."""


def podman(*words: str, timeout_s: float = _QUICK_S, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one podman command. Raises: EngineError with what it said."""
    done = subprocess.run(
        ["podman", *words], capture_output=True, text=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL
    )
    if check and done.returncode != 0:
        raise EngineError(
            f"podman {' '.join(words)[:300]}: code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"
        )
    return done


def why_not() -> str:
    """Why containers cannot be had here, in a line for the one who reads a skipped test; empty when they can."""
    if shutil.which("podman") is None:
        return "podman is not installed"
    if os.geteuid() != 0:
        return "these tests look into volumes and at processes: run them as root, or in `podman unshare`"
    for image, how in (
        (COORDINATOR_IMAGE, "make wheelhouse images"),
        (SITE_IMAGE, "make wheelhouse images"),
        (PROXY_IMAGE, "tests/containers/make_nginx.sh, or name an nginx image in PANFM_TEST_NGINX"),
    ):
        if podman("image", "exists", image, check=False).returncode != 0:
            return f"there is no image {image}: {how}"
    return ""


@dataclass(slots=True)
class Engine:
    """What one test has made, and how to remove it."""

    name: str = field(default_factory=lambda: f"{PREFIX}{secrets.token_hex(3)}")
    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    limited: list[Path] = field(default_factory=list)
    """Folders with a size of their own, mounted on this machine."""

    def network(self, *options: str) -> str:
        """A network between containers, without a route out."""
        podman("network", "create", "--internal", *options, self.name)
        self.networks.append(self.name)
        return self.name

    def volume(self, what: str) -> Path:
        """A volume; returns where it lies on this machine. Its name is the engine's and this word."""
        name = f"{self.name}-{what}"
        podman("volume", "create", name)
        self.volumes.append(name)
        return Path(podman("volume", "inspect", "--format", "{{.Mountpoint}}", name).stdout.strip())

    def limited_folder(self, what: str, megabytes: int) -> Path:
        """A folder that fits so much and no more; it looks to a container like a small disk."""
        folder = Path("/var/tmp") / f"{self.name}-{what}"
        folder.mkdir()
        self.limited.append(folder)
        options = f"size={megabytes}m,mode=0700,uid={OWNER},gid={OWNER}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
        return folder

    def start(self, what: str, image: str, options: Sequence[str], command: Sequence[str] = ()) -> str:
        """Start a container in the background; returns its name. An older one of that name is removed."""
        name = f"{self.name}-{what}"
        podman("rm", "--force", "--ignore", "--time", "0", name)
        if name not in self.containers:
            self.containers.append(name)
        podman("run", "--detach", "--name", name, *options, *_code_for(image), image, *command)
        return name

    def run(
        self, image: str, options: Sequence[str], command: Sequence[str], timeout_s: float = 600.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of its own, to its end."""
        name = f"{self.name}-once-{secrets.token_hex(3)}"
        try:
            words = ("run", "--rm", "--name", name, *HARDENED, *options, *_code_for(image), image, *command)
            return podman(*words, timeout_s=timeout_s, check=check)
        finally:
            podman("rm", "--force", "--ignore", "--time", "0", name, check=False)

    def remove(self) -> None:
        """Remove everything, whatever state it is in."""
        for name in reversed(self.containers):
            podman("rm", "--force", "--ignore", "--time", "3", name, check=False)
        for folder in self.limited:
            subprocess.run(["umount", str(folder)], check=False)
            folder.rmdir()
        for name in self.volumes:
            podman("volume", "rm", "--force", name, check=False)
        for name in self.networks:
            podman("network", "rm", "--force", name, check=False)


def _code_for(image: str) -> tuple[str, ...]:
    return code_of_checkout() if image in (COORDINATOR_IMAGE, SITE_IMAGE) else ()


def processes_of(container: str) -> list[tuple[int, int, str]]:
    """(process on this machine, its parent, command line) of everything in a container."""
    top = podman("top", container, "hpid", check=False).stdout.split()[1:]
    found = []
    for word in top:
        try:
            stat = Path(f"/proc/{word}/stat").read_text().rpartition(")")[2].split()
            words = Path(f"/proc/{word}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # gone meanwhile
            continue
        if stat[0] != "Z":
            found.append((int(word), int(stat[1]), words.strip()))
    return found
