"""A person's wish that a run ends: a file in the run's folder, which the coordinator's program looks for between messages.

A wish and not a signal, because who wishes may be in another container than the program, and the program may be dead: then the
run is taken up again and ends at once, with what its last checkpoint holds.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path

from panfm.durable import write_file

STOP_FILE = "stop"


def wish_to_stop(run_folder: Path, by: str) -> None:
    """Have the run end as soon as may be."""
    write_file(run_folder / STOP_FILE, f"{by}\n".encode())


def stop_wished_by(run_folder: Path) -> str | None:
    """Who wants the run to end; None while nobody does."""
    try:
        return (run_folder / STOP_FILE).read_text().strip() or "a person"
    except FileNotFoundError:
        return None


def take_back(run_folder: Path) -> None:
    """The run is to go on."""
    (run_folder / STOP_FILE).unlink(missing_ok=True)
