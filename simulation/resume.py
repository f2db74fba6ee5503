"""What a rehearsal keeps so that it can be gone on with after any death: its settings, and that its hospitals are whole.

<run>/rehearsal.yaml   the settings, written before anything else
<run>/cohort.json      where the hospitals lie, written when all of them are made; before that they are made anew
<run>/rehearsal.lock   held by the process that rehearses

The study itself is resumed by the coordinator's app, from its own record and checkpoints (server.resume).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from panfm import recipes
from panfm.config import RunConfig
from panfm.durable import write_file
from panfm.errors import ConfigError
from simulation.hospitals import RehearsalCohort

SETTINGS_FILE, COHORT_FILE, LOCK_FILE = "rehearsal.yaml", "cohort.json", "rehearsal.lock"

OWN_SETTINGS = ("resume", "runs", "workers", "engine", "port", "ray.cpus", "ray.gpus")
"""Of the machine, not of the run: they may differ after a resume, and change no bit of the model."""


def settings_to_resume(given: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """The settings of the run that is gone on with, with those of the machine that were given now.

    Args:
        given: what the arguments come to.
        arguments: the `key=value` settings as they were written.
    Raises: ConfigError when there is no such rehearsal, or a setting of the run itself was given.
    """
    names = {argument.partition("=")[0] for argument in arguments}
    if foreign := sorted(names - set(OWN_SETTINGS)):
        raise ConfigError(
            f"resume= goes on with the settings of the run itself; leave out {foreign[0]}= (beside resume= there can be"
            f" {', '.join(OWN_SETTINGS[1:])})"
        )
    path = Path(given.runs) / given.resume / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(f"there is no rehearsal called {given.resume} in {given.runs}; check resume= and runs=")
    own = {name: getattr(given, name) for name in names if "." not in name}
    ray = {name.partition(".")[2]: getattr(given.ray, name.partition(".")[2]) for name in names if "." in name}
    kept = recipes.run_from_yaml(path.read_text())
    return replace(kept, **{**own, "name": "", "init_from": ""}, ray=replace(kept.ray, **ray))


def keep_settings(run_folder: Path, config: RunConfig) -> None:
    """Keep the settings of a rehearsal that begins."""
    write_file(run_folder / SETTINGS_FILE, recipes.to_yaml(config).encode())


def as_begun(run_folder: Path, config: RunConfig) -> RunConfig:
    """The settings of a rehearsal that died before its study began: it begins now, as it was to."""
    kept = recipes.run_from_yaml((run_folder / SETTINGS_FILE).read_text())
    return replace(config, resume="", name=config.resume, init_from=kept.init_from)


def keep_cohort(run_folder: Path, cohort: RehearsalCohort) -> None:
    """Say that the hospitals are whole, and where they lie as seen from the run's folder, which may be moved."""
    places = {
        "hospitals": {site: os.path.relpath(folder, run_folder) for site, folder in cohort.hospitals.items()},
        "evaluation": [os.path.relpath(folder, run_folder) for folder in cohort.evaluation],
    }
    write_file(run_folder / COHORT_FILE, json.dumps(places, indent=1).encode())


def kept_cohort(run_folder: Path) -> RehearsalCohort | None:
    """The hospitals, when they are whole; what was made of them is removed otherwise."""
    path = run_folder / COHORT_FILE
    if not path.is_file():
        for part in ("hospitals", "evaluation"):
            shutil.rmtree(run_folder / part, ignore_errors=True)
        return None
    places = json.loads(path.read_text())
    return RehearsalCohort(
        hospitals={site: run_folder / place for site, place in sorted(places["hospitals"].items())},
        evaluation=tuple(run_folder / place for place in places["evaluation"]),
    )
