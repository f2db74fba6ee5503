"""What a run leaves on the coordinator's disk, in one folder: record, checkpoints and the exported model.

runs/coordinator.key          signs tasks; its public half stands in the sites' policies
runs/<name>/record.jsonl      what happened (panfm.reporting.record)
runs/<name>/checkpoints/      one model folder per round, the last two kept
runs/<name>/model/            the model of the last round, for use
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.export.model_folder import ModelFolder, write_model
from panfm.signing import load_or_make_key

KEPT_CHECKPOINTS = 2


def coordinator_key(runs: Path) -> Ed25519PrivateKey:
    """The key with which the coordinator of these runs signs."""
    return load_or_make_key(runs / "coordinator.key")


def write_checkpoint(run_folder: Path, model: ModelFolder) -> None:
    """Keep the model of a round, and forget all but the last few."""
    folder = run_folder / "checkpoints"
    write_model(folder / f"round-{model.card.round:04d}", model)
    for old in sorted(folder.glob("round-*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)


def export_model(run_folder: Path, model: ModelFolder) -> Path:
    """The model for use; returns its folder."""
    folder = run_folder / "model"
    write_model(folder, model)
    return folder
