"""Which subjects a pretend hospital keeps for judging models (split `validation`): written into its own table of scans."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from panfm.data.manifest import read_scan_table, write_scan_table
from panfm.randomness import stream

VALIDATION = "validation"

_TRAINS = ("", "pretrain")


def hold_out(folder: Path, share: float, organs: Sequence[str], seed: int) -> None:
    """Mark a share of the subjects that the hospital trains on, with all their scans, as held out.

    Args:
        folder: the hospital's, with `scans.csv`.
        share: of its subjects, rounded; 0 changes nothing. One of them trains in any case.
        organs: the study's vocabulary.
        seed: of the run. Who is chosen depends on it and on the subject's name, and on who else is there only in number.
    """
    if share == 0:
        return
    rows = read_scan_table(folder / "scans.csv", organs)
    training = {row.subject for row in rows if row.split in _TRAINS}
    drawn = sorted(training, key=lambda subject: (stream(seed, "validation", subject).random(), subject))
    chosen = set(drawn[: min(round(share * len(drawn)), len(drawn) - 1)])
    marked = [replace(row, split=VALIDATION) if row.subject in chosen else row for row in rows]
    write_scan_table(folder / "scans.csv", marked)
