"""What a run leaves on the coordinator's disk, in one folder: record, checkpoints and the exported model.

runs/coordinator.key          signs tasks; its public half stands in the sites' policies
runs/<name>/record.jsonl      what happened (panfm.reporting.record)
runs/<name>/run.lock          held by the process that writes the run (server.lock)
runs/<name>/checkpoints/      the state after a round, the last two kept (server.checkpoint)
runs/<name>/spool/            answers of the round that is under way (server.spool)
runs/<name>/model/            the model of the last round, for use
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
import secrets
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import ConfigError
from panfm.export.model_folder import ModelFolder, write_model
from panfm.reporting.record import read_record
from panfm.signing import load_or_make_key

RECORD_FILE, LOCK_FILE = "record.jsonl", "run.lock"

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_new(runs: Path, name: str) -> None:
    """Raises: ConfigError when no new run can have this name: it cannot be a folder's, or a run has it already.

    What a process left that was killed before its first event was whole is no run yet.
    """
    _check_name(name)
    if (runs / name / RECORD_FILE).exists() and any(read_record(runs / name / RECORD_FILE)):
        raise ConfigError(
            f"there is a run called {name} in {runs} already; give another name=, remove it, or go on with it: resume={name}"
        )


def check_resumable(runs: Path, name: str) -> None:
    """Raises: ConfigError when there is no run of this name to go on with."""
    _check_name(name)
    if not (runs / name / RECORD_FILE).exists():
        raise ConfigError(f"there is no run called {name} in {runs} that could be resumed; check resume= and runs=")


def _check_name(name: str) -> None:
    if not _RUN_NAME.fullmatch(name):
        raise ConfigError(
            f"name= should be at most 100 letters, digits, '.', '_' and '-', got {name!r:.120}; rename it"
        )


def new_run_id(name: str) -> str:
    """What sites know a run by: its name and a random part, for a site remembers its answers by run and round.

    A second run of the same name, after the first one's folder was removed, is another run. Nothing that is trained
    depends on the id.
    """
    return f"{name}-{secrets.token_hex(4)}"


def coordinator_key(runs: Path) -> Ed25519PrivateKey:
    """The key with which the coordinator of these runs signs."""
    return load_or_make_key(runs / "coordinator.key")


def export_model(run_folder: Path, model: ModelFolder) -> Path:
    """The model for use; returns its folder."""
    folder = run_folder / "model"
    write_model(folder, model)
    return folder
