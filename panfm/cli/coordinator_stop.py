"""`panfm coordinator stop`: end a run now, with the model of its last finished round for use."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from panfm.cli.coordinator_run import COORDINATOR, watch


def stop(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    folder: Annotated[Path, COORDINATOR] = Path(),
    follow: Annotated[bool, typer.Option(help="Watch the run until it is over.")] = True,
) -> None:
    """End a run between two messages; it can be resumed later. A program that died is started again to end it."""
    from panfm.coordinator.studies import events_of_run
    from panfm.coordinator.studies import stop as stop_run

    run_folder = stop_run(folder, name, by=_who())
    print(
        f"run {name} is to end; the round that is under way counts no more, and its model is that of the round before"
    )
    if follow:
        watch(run_folder, folder, skip=len(events_of_run(run_folder)))


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user without a name
        return "a person"
