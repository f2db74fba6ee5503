"""`panfm coordinator run` and `follow`: start a study over the deployment, or go on with one, and watch it.

The run belongs to the coordinator's service and not to this terminal: Ctrl-C, a closed window or a lost connection end the
watching only.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import RunError

if TYPE_CHECKING:
    from panfm.reporting.telling import Line

COORDINATOR = typer.Option(help="The coordinator's folder.")


def run(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings such as recipe=real rounds=100 name=pilot, or resume=NAME.", metavar="[SETTING=VALUE]..."
        ),
    ] = None,
    folder: Annotated[Path, COORDINATOR] = Path(),
    follow: Annotated[bool, typer.Option(help="Watch the run until it is over.")] = True,
) -> None:
    """Start a study over the admitted sites, or go on with one: resume=NAME."""
    from panfm.coordinator.registration import is_up
    from panfm.coordinator.studies import Runs, begin, compose, events_of_run, flower_of

    config = compose(overrides or [], datetime.now())
    if not is_up(folder):
        raise RunError(f"the SuperLink of {folder} is not up; start the coordinator's service: deploy/guides/README.md")
    run_folder = Runs(folder).of(config.run_name)
    told = len(events_of_run(run_folder))
    submission = begin(folder, flower_of(folder), config)
    print(
        f"run {run_folder.name} is asked for (Flower's {submission.run_id}); record: {run_folder / 'record.jsonl'}",
        flush=True,
    )
    if follow:
        watch(run_folder, folder, skip=told)


def follow(
    name: Annotated[str, typer.Argument(help="Name of the run.")], folder: Annotated[Path, COORDINATOR] = Path()
) -> None:
    """Watch a run until it is over; the run does not notice."""
    from panfm.coordinator.studies import wanted_run

    watch(wanted_run(folder, name), folder)


def watch(run_folder: Path, folder: Path, skip: int = 0) -> None:
    """Tell the run. Raises: RunError when it ends incomplete; KeyboardInterrupt, having said that it goes on."""
    from panfm.coordinator.following import follow_run

    try:
        end = follow_run(run_folder, _tell, skip)
    except KeyboardInterrupt:
        again = f"panfm coordinator follow {run_folder.name} --folder {folder}"
        print(f"panfm: the run goes on; watch it again with `{again}`", file=sys.stderr)
        raise
    done = f"run {run_folder.name} is {end.status} after {end.rounds_done} rounds"
    print(f"{done}: {end.reason}" if end.reason else done)
    if end.model:
        print(f"model: {run_folder / end.model}")


def _tell(line: Line) -> None:
    print(line.words, file=sys.stderr if line.is_trouble else sys.stdout, flush=True)
