"""`panfm follow`: draw a run's curves elsewhere, in TensorBoard or MLflow, from its record and while it goes on."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from panfm.errors import ConfigError, DataError


def follow(
    run: Annotated[Path, typer.Argument(help="Folder of a run: it holds record.jsonl.")],
    tensorboard: Annotated[bool, typer.Option(help="Write event files into RUN/tensorboard.")] = False,
    mlflow: Annotated[str, typer.Option(help="Tracking store, such as sqlite:///runs/mlflow.db.", metavar="URI")] = "",
    once: Annotated[bool, typer.Option(help="Take what is there now and end.")] = False,
) -> None:
    """Follow the record of a run, until Ctrl-C or once."""
    from panfm.reporting.follow import RECORD  # here, so that no other verb loads these libraries
    from panfm.reporting.followers import follow_once, follow_until, open_followers

    if not (tensorboard or mlflow):
        raise ConfigError("nothing follows; give --tensorboard, --mlflow URI, or both")
    if not (run / RECORD).is_file():
        raise DataError(f"no record in {run}; name the folder of a run, which holds {RECORD}")
    followers = open_followers(run, tensorboard=tensorboard, mlflow=mlflow)
    if once:
        print(f"{follow_once(run, followers)} entries of {run / RECORD}")
        return
    follow_until(threading.Event(), run, followers)
