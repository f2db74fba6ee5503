"""Where a run goes on that was killed, stopped or fell short: the newest checkpoint that is whole, and what the record adds.

The record decides what is true, the checkpoint holds what is too large for it; the two are held against each other before
anything is done. Nothing is written here.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

import panfm
from panfm.errors import ConfigError, DataError
from panfm.reporting.record import Event, RoundFinished, RunResumed, RunStarted, end_of, start_of
from server.checkpoint import Checkpoint, newest_checkpoint
from server.journal import OpenRound, collapsed_in_a_row, open_round, standing
from server.run_record import RunRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumption:
    """What a process needs to go on with a run."""

    checkpoint: Checkpoint
    resumed: RunResumed
    """To go on record first of all."""
    unrecorded: RoundFinished | None
    """The end of the last round, where its checkpoint was written and its event was not."""
    opened: OpenRound
    """How far the next round had come."""
    collapsed_in_a_row: int
    """Rounds at the end in which every site's features collapsed."""


def start_to_resume(run_folder: Path, events: Sequence[Event]) -> RunStarted:
    """The start of a run that can be gone on with, as far as its record tells.

    Raises: ConfigError when it never began, or nothing is left to do.
    """
    start, end = start_of(events), end_of(events)
    if start is None:
        raise ConfigError(
            f"the run in {run_folder} never began, so it cannot be resumed; start it anew, with another name="
        )
    if end is not None and end.rounds_done >= start.rounds:
        raise ConfigError(
            f"the run in {run_folder} is {end.status}: all its {start.rounds} rounds are done, and nothing is left to"
            " resume; start another run, with init_from=MODEL where it should go on from this one's"
        )
    return start


def resumption(run_folder: Path, record: RunRecord, events: Sequence[Event]) -> Resumption:
    """From where the run goes on.

    Args:
        events: all of the record.
    Raises: ConfigError as above; CheckpointError when no checkpoint is whole; DataError when record and checkpoint do not
        belong together.
    """
    start = start_to_resume(run_folder, events)
    found = newest_checkpoint(run_folder, start.run)
    checkpoint = found.checkpoint
    if not record.begins_with(checkpoint.record):
        raise DataError(
            f"the record of the run in {run_folder} is not as it was when round {checkpoint.round} ended: lines were cut or"
            " changed since; restore record.jsonl from a copy"
        )
    resumed = RunResumed(
        run=start.run,
        rounds_done=checkpoint.round,
        panfm_version=panfm.__version__,
        torch_version=torch.__version__,
        flower_version=version("flwr"),
        note="; ".join([*found.damaged, *_other_versions(start)]),
    )
    stand = standing([*events, resumed])
    on_record = any(isinstance(event, RoundFinished) and event.round == checkpoint.round for event in stand)
    return Resumption(
        checkpoint=checkpoint,
        resumed=resumed,
        unrecorded=None if on_record else checkpoint.finished,
        opened=open_round(stand, checkpoint.round + 1),
        collapsed_in_a_row=collapsed_in_a_row(stand, checkpoint.round),
    )


def _other_versions(start: RunStarted) -> list[str]:
    """What makes the rest of the run another computation than its beginning."""
    pairs = (("panfm", start.panfm_version, panfm.__version__), ("torch", start.torch_version, torch.__version__))
    return [f"{what} was {then} and is {now}: bits may differ" for what, then, now in pairs if then != now]
