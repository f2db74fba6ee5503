"""`panfm simulate`: hand over to the rehearsal, which stands above the library and may not be imported from here."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated

import typer

from panfm.errors import ConfigError


def _finds_rehearsal() -> bool:
    """Whether `python -m simulation`, started here, would find the program: the working folder counts first."""
    spec = PathFinder.find_spec("simulation", [str(Path.cwd()), *sys.path])
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any((Path(folder) / "__main__.py").is_file() for folder in folders)


def simulate(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings such as recipe=demo rounds=5, and Hydra's own options such as --cfg job."),
    ] = None,
) -> None:
    """Rehearse a study on this machine: pretend hospitals, the real Flower apps, no network."""
    if not _finds_rehearsal():
        raise ConfigError(
            "`panfm simulate` needs the folder simulation/ of a checkout, and this installation holds the library only; "
            "clone the project and run `make demo` there, or call this from the checkout"
        )
    sys.stdout.flush()
    sys.stderr.flush()
    # Replaces this process, so that Ctrl-C and the exit code belong to the rehearsal alone.
    os.execv(sys.executable, [sys.executable, "-m", "simulation", *(overrides or [])])
