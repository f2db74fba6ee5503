"""A program in place of `flwr`: it writes down what it was asked, and answers from a file or with an error."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panfm.coordinator.flower import FlowerCommand

_PROGRAM = """#!/bin/sh
echo "$@" >> {home}/asked
for word in "$@"; do case "$word" in *run_config.toml) cp "$word" {home}/run_config.toml;; esac; done
echo "Using SuperLink: panfm"
cat {home}/answer-$1 2>/dev/null || {{ echo "no such command" >&2; exit 2; }}
"""


class PretendFlower(FlowerCommand):
    """The command line whose program is the pretend one."""

    @classmethod
    def at(cls, home: Path) -> PretendFlower:
        """The pretend program in a folder of its own."""
        home.mkdir(parents=True, exist_ok=True)
        program = home / "flwr"
        program.write_text(_PROGRAM.format(home=home))
        program.chmod(0o755)
        return cls(home=home, program=program)

    def answers(self, verb: str, answer: dict[str, Any]) -> None:
        """What it says from now on when the first word is this."""
        (self.home / f"answer-{verb}").write_text(json.dumps(answer))

    def knows_runs(self, **status: str) -> None:
        """Its runs, by id, and that it takes another one as number 7."""
        runs = [{"run-id": run_id.removeprefix("r"), "status": word} for run_id, word in status.items()]
        self.answers("list", {"success": True, "runs": runs})
        self.answers("run", {"success": True, "run-id": "7"})

    def asked(self) -> list[str]:
        """Every command line so far."""
        return (self.home / "asked").read_text().splitlines() if (self.home / "asked").exists() else []
