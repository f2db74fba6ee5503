"""Runs over the deployment: what is wanted stands on disk before Flower hears of it, so that it outlives every process.

runs/<name>/wanted.yaml          the composed run, as it was asked for
runs/<name>/submissions.jsonl    what was handed to Flower, and when (panfm.coordinator.submissions)
runs/<name>/submitting.lock      held while something is handed over
runs/<name>/stop                 a wish that it ends (panfm.coordinator.stop_wish)

Flower ends a run whose ServerApp or SuperLink was away for a minute, and never takes it up again. The keeper does: a wanted run
that is not over, that no process holds and that Flower no longer runs is handed over anew, to go on from its last checkpoint.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import panfm
from panfm import recipes
from panfm.config import Recipe, RunConfig
from panfm.coordinator.flower import FlowerCommand
from panfm.coordinator.settings import FLOWER_HOME, RUNS
from panfm.coordinator.stop_wish import stop_wished_by, take_back, wish_to_stop
from panfm.coordinator.submissions import (
    KEEPER,
    PERSON,
    Submission,
    is_over,
    note,
    rounds_done,
    submissions,
    tries_in_vain,
    was_given_up,
)
from panfm.durable import write_file
from panfm.errors import ConfigError, LockedError, PanfmError, RunError
from panfm.lock import held, is_held
from panfm.reporting.follow import RECORD
from panfm.reporting.record import Event, read_record, start_of
from panfm.site.bundling import bundle_sources

WANTED_FILE, SUBMITTING_LOCK, RUN_LOCK = "wanted.yaml", "submitting.lock", "run.lock"
MOST_TRIES = 5
"""How often in a row the keeper takes a run up without a further round coming of it."""
ENDED = "finished"
"""How Flower's word for an ended run begins."""
OWN_SETTINGS = frozenset({"name", "resume", "init_from", "tensorboard", "mlflow"})
"""Of the settings that are no recipe's, those that mean something outside a rehearsal."""

_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of one coordinator."""

    folder: Path
    """The coordinator's."""

    def of(self, name: str) -> Path:
        """The folder of a run. Raises: ConfigError when nothing can have this name."""
        if not _RUN_NAME.fullmatch(name):
            raise ConfigError(
                f"a run's name should be at most 100 letters, digits, '.', '_' and '-', got {name!r:.120}; rename it"
            )
        return (self.folder / RUNS / name).resolve()

    def wanted(self) -> list[Path]:
        """The folders of all runs that were ever asked for here."""
        return sorted(path.parent for path in (self.folder / RUNS).glob(f"*/{WANTED_FILE}"))


def compose(words: Sequence[str], now: datetime) -> RunConfig:
    """The run that `key=value` words describe, with a name.

    Raises: ConfigError when a word is mistaken, or says something of a rehearsal.
    """
    meant = {field.name for field in fields(Recipe)} | OWN_SETTINGS
    for word in words:
        setting = re.split(r"[.=@]", word.lstrip("+~"))[0]
        if setting in {field.name for field in fields(RunConfig)} - meant:
            raise ConfigError(
                f"{setting}= is a setting of a rehearsal (panfm simulate); in a study the sites, their scans and their "
                "devices are what they are: leave it out"
            )
    config = recipes.load(words)
    if config.init_from:
        config = replace(config, init_from=str(Path(config.init_from).resolve()))
    return config if config.run_name else replace(config, name=f"{config.recipe}-{now:%Y%m%d-%H%M%S}")


def source_tree() -> Path:
    """Where the bundle's sources lie: named by PANFM_TREE, or the checkout that this panfm belongs to.

    Raises: ConfigError when there is none.
    """
    tree = Path(os.environ.get("PANFM_TREE") or Path(panfm.__file__).resolve().parents[1])
    if not all((tree / name).exists() for name in ("pyproject.toml", "client", "server")):
        raise ConfigError(
            f"{tree} does not hold the sources of the study's bundle (pyproject.toml, client/, server/); name a "
            "checkout of this release in PANFM_TREE"
        )
    return tree


def begin(coordinator: Path, flower: FlowerCommand, config: RunConfig) -> Submission:
    """Ask for a run, new or with `resume`, and hand it to Flower.

    Raises: ConfigError when the name is taken, or there is nothing to resume; LockedError when it is going on;
        RunError when Flower does not take it: then nothing is wanted that was not before.
    """
    run_folder = Runs(coordinator).of(config.run_name)
    (_check_resumable if config.resume else _check_new)(run_folder)
    with held(run_folder / SUBMITTING_LOCK):
        wanted = run_folder / WANTED_FILE
        is_new = not wanted.exists()
        if is_new:
            write_file(wanted, recipes.to_yaml(config).encode())
        take_back(run_folder)
        try:
            return _hand_over(run_folder, flower, config, PERSON)
        except PanfmError:
            if is_new:
                wanted.unlink()
            raise


def flower_of(coordinator: Path) -> FlowerCommand:
    """Flower's command line with this coordinator's configuration."""
    return FlowerCommand(home=(coordinator / FLOWER_HOME).resolve())


def stop(coordinator: Path, name: str, by: str) -> Path:
    """Wish that a run ends with its last checkpoint. Returns: its folder.

    Raises: ConfigError when no such run was asked for, or it is over.
    """
    run_folder = wanted_run(coordinator, name)
    if is_over(events_of_run(run_folder), submissions(run_folder)):
        raise ConfigError(f"the run {name} is over already; its record lies in {run_folder}")
    wish_to_stop(run_folder, by)
    return run_folder


def wanted_run(coordinator: Path, name: str) -> Path:
    """The folder of a run that was asked for here. Raises: ConfigError when there is none of this name."""
    run_folder = Runs(coordinator).of(name)
    if not (run_folder / WANTED_FILE).is_file():
        known = ", ".join(folder.name for folder in Runs(coordinator).wanted()) or "none yet"
        raise ConfigError(f"no run called {name} was asked for in {coordinator}; there are: {known}")
    return run_folder


def keep(coordinator: Path, flower: FlowerCommand) -> list[str]:
    """Take up again what died; called every few seconds by the coordinator's service, and cheap while nothing died.

    Returns: what it did, a line each.
    Raises: RunError, naming the runs that could not be looked after, when there is nothing else to tell; they are tried again.
    """
    told: list[str] = []
    failed: list[str] = []
    for run_folder in Runs(coordinator).wanted():
        try:
            told += _keep_one(run_folder, flower)
        except LockedError:
            continue  # a person hands it over just now
        except (PanfmError, OSError) as error:
            failed.append(f"run {run_folder.name} cannot be looked after: {error}")
    if failed and not told:
        raise RunError("; ".join(failed))
    return told + failed


def _keep_one(run_folder: Path, flower: FlowerCommand) -> list[str]:
    if not _is_orphan(run_folder):
        return []
    with held(run_folder / SUBMITTING_LOCK):
        handed = submissions(run_folder)
        if handed and (status := flower.run_status(handed[-1].run_id)) and not status.startswith(ENDED):
            return []  # on its way up, or not yet missed
        if not _is_orphan(run_folder):
            return []  # it came up, or to its end, while Flower was asked
        events = events_of_run(run_folder)
        if tries_in_vain(events, handed) >= MOST_TRIES and stop_wished_by(run_folder) is None:
            note(run_folder, _submission("", KEEPER, events))
            return [f"run {run_folder.name} was taken up {MOST_TRIES} times and got no further; it is left as it is"]
        wanted = recipes.run_from_yaml((run_folder / WANTED_FILE).read_text(encoding="utf-8"))
        if start_of(events) is not None:
            wanted = replace(wanted, name="", init_from="", resume=run_folder.name)
        taken_up = _hand_over(run_folder, flower, wanted, KEEPER)
        return [f"run {run_folder.name} was taken up again after round {taken_up.rounds_done} as {taken_up.run_id}"]


def _is_orphan(run_folder: Path) -> bool:
    """Whether a run is wanted, not over, not given up, and no process writes it."""
    handed = submissions(run_folder)
    if was_given_up(handed) or is_held(run_folder / RUN_LOCK):
        return False
    return not is_over(events_of_run(run_folder), handed)


def _hand_over(run_folder: Path, flower: FlowerCommand, config: RunConfig, by: str) -> Submission:
    events = events_of_run(run_folder)
    with bundle_sources(source_tree()) as sources:
        run_id = flower.submit(sources, recipes.to_yaml(config))
    submission = _submission(run_id, by, events)
    note(run_folder, submission)
    return submission


def _submission(run_id: str, by: str, events: Sequence[Event]) -> Submission:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Submission(run_id=run_id, by=by, at=at, events=len(events), rounds_done=rounds_done(events))


def events_of_run(run_folder: Path) -> list[Event]:
    """The record so far; nothing while there is none."""
    return list(read_record(run_folder / RECORD)) if (run_folder / RECORD).exists() else []


def _check_new(run_folder: Path) -> None:
    if (run_folder / WANTED_FILE).exists() or events_of_run(run_folder):
        name = run_folder.name
        raise ConfigError(
            f"there is a run called {name} in {run_folder.parent} already; give another name=, or go on with it: resume={name}"
        )


def _check_resumable(run_folder: Path) -> None:
    name, events = run_folder.name, events_of_run(run_folder)
    if start_of(events) is None:
        raise ConfigError(f"there is no run called {name} in {run_folder.parent} that could be resumed; check resume=")
    if is_held(run_folder / RUN_LOCK):
        raise RunError(f"the run {name} is going on; follow it with `panfm coordinator follow {name}`")
