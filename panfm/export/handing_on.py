"""From a run's folder to a model that can be handed on: checked, whole, with the card that its reader needs."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from panfm.durable import write_folder
from panfm.errors import CheckpointError
from panfm.export.model_card import CARD_FILE, card_text
from panfm.export.model_folder import fill_model, read_model
from panfm.reporting.record import Event, RoundEvaluated, events_of, read_record

RECORD_FILE, LAST_MODEL, BEST_MODELS = "record.jsonl", "model", "best"
"""What a run's folder holds, as the coordinator writes it."""


def export_run(run: Path, out: Path, *, best: bool = False) -> Path:
    """Copy a run's model with its card into a new folder; returns that folder.

    Args:
        best: the model of the best round by the sites' evaluations, not of the last.
    Raises: CheckpointError when there is no such model, it is damaged, or `out` is taken; DataError without a record.
    """
    if out.exists():
        raise CheckpointError(f"there is something at {out} already; name a folder that is to be made")
    events = list(read_record(run / RECORD_FILE))
    model = read_model(_best(run, events) if best else run / LAST_MODEL)

    def fill(draft: Path) -> None:
        fill_model(draft, model)
        (draft / CARD_FILE).write_text(card_text(model, out.name, events))

    write_folder(out, fill)
    return out


def card_of(folder: Path) -> str:
    """The model card of a model's folder: the one that it was handed on with, or what can be said without the run's record.

    Raises: CheckpointError when there is no model, or it is damaged.
    """
    model = read_model(folder)
    written = folder / CARD_FILE
    return written.read_text() if written.is_file() else card_text(model, folder.name, _record_beside(folder))


def _best(run: Path, events: list[Event]) -> Path:
    rounds = [event.best_round for event in events_of(RoundEvaluated, events) if event.best_round is not None]
    if not rounds:
        raise CheckpointError(
            f"{run} knows no best round, for no site evaluated one; leave out --best, or set federation.evaluation.every"
        )
    return run / BEST_MODELS / f"round-{rounds[-1]:04d}"


def _record_beside(folder: Path) -> list[Event]:
    """The record of the run whose folder the model lies in, if it does."""
    path = folder.resolve().parent / RECORD_FILE
    return list(read_record(path)) if path.is_file() else []
