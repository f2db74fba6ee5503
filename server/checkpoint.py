"""What the coordinator needs to go on after a round: one folder, written whole or not at all, every byte checked on reading.

    checkpoints/round-0007/   student, teacher, recipe and card, as every exported model (panfm.export.model_folder)
        moments.safetensors   what the server's optimiser remembers
        checkpoint.json       the round's last event, the norms of past rounds, digests, and how long the record was

Who had a vote in which round is told by the record alone; a checkpoint says how long the record was and its digest, so that
the two belong together. Round 0 is the model before training. The last two are kept, and when the newest is damaged the one
before it serves: the round between them is averaged again, from the same answers.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from panfm import update
from panfm.durable import write_folder
from panfm.errors import CheckpointError
from panfm.export.model_folder import ModelFolder, fill_model, read_model
from panfm.reporting.record import RoundFinished
from server.aggregation.state import ServerState
from server.run_record import Witness

KEPT = 2
"""Checkpoints of a run that are kept."""

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The coordinator's state after a round."""

    model: ModelFolder
    state: ServerState
    record: Witness
    """The record when the checkpoint was written: all of the round but its last event."""
    finished: RoundFinished | None
    """The round's last event, which goes on record when the checkpoint is on disk; None before the first round."""

    @property
    def round(self) -> int:
        """Rounds that the model has seen."""
        return self.model.card.round


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run can go on from."""

    checkpoint: Checkpoint
    damaged: tuple[str, ...]
    """Newer checkpoints that cannot be read, and why; one line each."""


def write_checkpoint(run_folder: Path, checkpoint: Checkpoint) -> None:
    """Keep the state after a round, and forget all but the last few."""
    write_folder(checkpoint_place(run_folder, checkpoint.round), lambda draft: _fill(draft, checkpoint))
    for old in _places(run_folder)[:-KEPT]:
        shutil.rmtree(old)


def newest_checkpoint(run_folder: Path, run: str) -> Found:
    """The newest checkpoint that is whole.

    Args:
        run: id of the run that it must belong to.
    Raises: CheckpointError when there is none, saying what is wrong with each.
    """
    damaged: list[str] = []
    for place in reversed(_places(run_folder)):
        try:
            return Found(checkpoint=read_checkpoint(place, run), damaged=tuple(damaged))
        except CheckpointError as error:
            damaged.append(str(error))
    words = "; ".join(damaged) or f"none lies in {run_folder / 'checkpoints'}"
    raise CheckpointError(f"no checkpoint can be gone on from: {words}; restore one from a copy, or start another run")


def read_checkpoint(place: Path, run: str) -> Checkpoint:
    """One checkpoint. Raises: CheckpointError when it is damaged or another run's."""
    model = read_model(place)
    if model.card.run != run:
        raise CheckpointError(f"{place} is of the run {model.card.run}, not of {run}; put that run's own folder back")
    try:
        values = _values(place / "checkpoint.json")
        moments = load_file(place / "moments.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint in {place} cannot be read ({error}); restore it from a copy") from error
    if values["card"] != _file_digest(place / "card.json") or values["moments"] != update.digest(moments):
        raise CheckpointError(f"the checkpoint in {place} has other digests than it says; restore it from a copy")
    return Checkpoint(
        model=model,
        state=ServerState(moments=moments, past_norms=values["past_norms"]),
        record=Witness(**values["record"]),
        finished=RoundFinished(**values["finished"]) if values["finished"] else None,
    )


def checkpoint_place(run_folder: Path, number: int) -> Path:
    """Where the state after a round lies, while it is one of the last."""
    return run_folder / "checkpoints" / f"round-{number:04d}"


def _fill(draft: Path, checkpoint: Checkpoint) -> None:
    fill_model(draft, checkpoint.model)
    moments = {name: tensor.contiguous() for name, tensor in checkpoint.state.moments.items()}
    save_file(moments, draft / "moments.safetensors")
    values = {
        "format": FORMAT,
        "record": asdict(checkpoint.record),
        "finished": asdict(checkpoint.finished) if checkpoint.finished else None,
        "past_norms": checkpoint.state.past_norms,
        "card": _file_digest(draft / "card.json"),
        "moments": update.digest(moments),
    }
    (draft / "checkpoint.json").write_text(json.dumps({"sha256": _digest(values), "values": values}, indent=1) + "\n")


def _values(path: Path) -> Mapping[str, Any]:
    """What the file says. Raises: ValueError when its digest is another, or a newer panfm wrote it."""
    content = json.loads(path.read_text())
    values: dict[str, Any] = content["values"]
    if content["sha256"] != _digest(values):
        raise ValueError(f"{path.name} has another digest than it says")
    if values["format"] > FORMAT:
        raise ValueError(f"it has format {values['format']}, this panfm reads {FORMAT}: update panfm")
    return values


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _places(run_folder: Path) -> list[Path]:
    """All that are there, by round."""
    found = (run_folder / "checkpoints").glob("round-*")
    return sorted(found, key=lambda place: (len(place.name), place.name))
