"""Asking the SuperLink, through Flower's own command line: nodes, runs, and nothing that this library would have to import.

Flower's control interface has no public Python side and no credentials, so it is reached as a person reaches it: by the
program `flwr`, on loopback, with a configuration of this coordinator's own. Each question starts a process that takes two
seconds to come up; nobody asks more often than every few seconds.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panfm.errors import RunError

PROGRAMS = Path(sys.executable).parent
"""Where Flower's programs lie: beside the Python that they were installed for."""
ANSWER_TIMEOUT_S = 180.0
"""For a program that imports Flower, on a machine that may be busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A SuperNode as the SuperLink lists it; its name is not told by Flower's command line."""

    node_id: int
    status: str
    """registered (never seen), online, offline or unregistered."""
    online_at: str
    offline_at: str


@dataclass(frozen=True, slots=True)
class FlowerCommand:
    """Flower's command line, with the configuration below `home`."""

    home: Path
    """FLWR_HOME, which holds config.toml."""
    link: str = "panfm"
    """The SuperLink's name in it."""
    program: Path = PROGRAMS / "flwr"

    def ask(self, *words: str, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """What Flower answers to a command, such as `ask("supernode", "list")`; the SuperLink's name is added.

        Raises: RunError when it does not answer, or the answer is no.
        """
        command = [str(self.program), *words, self.link, "--format", "json"]
        try:
            done = subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, check=False, timeout=timeout_s
            )
            answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])  # prose comes first
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"`flwr {words[0]}` did not answer within {timeout_s:.0f} s; see the logs in {self.home}"
            ) from error
        except OSError as error:
            raise RunError(
                f"Flower's program {self.program} cannot be started ({error.strerror}); install panfm[federation]"
            ) from error
        except ValueError as error:
            said = " ".join((done.stderr or done.stdout).split())[-200:]
            raise RunError(f"`flwr {words[0]}` did not answer: {said}; see the logs in {self.home}") from error
        if answer.get("success") is False:
            said = " ".join(str(answer.get("error-message", answer)).split())[-200:].rstrip(".")
            raise RunError(f"Flower refused `flwr {words[0]}`: {said}; see the logs in {self.home}")
        return answer

    def nodes(self) -> list[Node]:
        """All nodes that were ever registered and are not deleted. Raises: RunError."""
        return [
            Node(
                node_id=int(node["node-id"]),
                status=str(node["status"]),
                online_at=str(node["online-at"]),
                offline_at=str(node["offline-at"]),
            )
            for node in self.ask("supernode", "list").get("nodes", [])
        ]

    def register(self, public_key: Path, name: str) -> int:
        """Let the owner of an OpenSSH public key in, under a name; returns the node's id.

        Raises: RunError, also when the key is registered already.
        """
        return int(self.ask("supernode", "register", str(public_key), "--name", name)["node-id"])

    def unregister(self, node_id: int) -> None:
        """Turn a node away from now on. Raises: RunError."""
        self.ask("supernode", "unregister", str(node_id))

    def submit(self, tree: Path, composed: str) -> str:
        """Build the bundle from a source tree, submit a run of it, and return the run's id.

        Args:
            composed: the whole composed run, as YAML.
        Raises: RunError.
        """
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            settings = Path(folder) / "run_config.toml"
            quoted = json.dumps(composed, ensure_ascii=False)  # JSON's escapes are TOML's, too
            settings.write_text(f"composed = {quoted}\n", encoding="utf-8")
            return str(self.ask("run", str(tree), "--run-config", str(settings))["run-id"])

    def run_status(self, run_id: str) -> str:
        """Flower's word for the state of a run, such as running or finished:failed; empty when it knows no such run.

        Raises: RunError when it does not answer at all.
        """
        runs = self.ask("list").get("runs", [])
        return next((str(run["status"]) for run in runs if str(run["run-id"]) == run_id), "")

    def end_run(self, run_id: str) -> None:
        """End a run as it stands. Raises: RunError."""
        self.ask("stop", run_id)

    def environment(self) -> dict[str, str]:
        """What Flower's programs of this coordinator are started with."""
        ours = {"FLWR_HOME": str(self.home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        return os.environ | ours
