"""The model of the best round, kept beside the last ones: `best/round-NNNN` below the run's folder, in the form of an export.

It is written before the record names the round as the best, and an older one goes only afterwards. So whatever round the
record names has its model on disk, at whatever moment the coordinator dies.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from pathlib import Path

from panfm.export.model_folder import ModelFolder, write_model

BEST_FOLDER = "best"


def keep_best(run_folder: Path, model: ModelFolder) -> Path:
    """Keep the model of a round that turned out the best; returns its folder."""
    folder = best_model(run_folder, model.card.round)
    write_model(folder, model)
    return folder


def best_model(run_folder: Path, round_number: int) -> Path:
    """Where the model of a round lies, if that round is the best."""
    return run_folder / BEST_FOLDER / f"round-{round_number:04d}"


def forget_other_best(run_folder: Path, round_number: int) -> None:
    """Remove what an earlier best round left, and what a coordinator left that died before it could say so."""
    for old in (run_folder / BEST_FOLDER).glob("*"):
        if old != best_model(run_folder, round_number):
            shutil.rmtree(old)
