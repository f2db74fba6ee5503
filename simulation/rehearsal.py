"""A whole rehearsal: pretend hospitals made, the study run by the real apps, the outcome probed, the reports written."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from panfm import recipes
from panfm.config import CohortKind, Engine, Recipe, RunConfig
from panfm.errors import ConfigError, PanfmError
from panfm.evaluation.learning_check import check_learning, read_held_out, to_rows
from panfm.export.model_folder import read_model
from panfm.lock import held
from panfm.models.device import check_device
from panfm.reporting.followers import catch_up
from panfm.reporting.record import ProbeTable, end_of, read_record, start_of
from panfm.reporting.run_report import write_run_report
from panfm.signing import public_hex
from panfm.site.report import make_site_report
from server.run_folder import RECORD_FILE, check_new, coordinator_key
from server.run_record import RunRecord
from server.study import first_model
from simulation.flower_runtime import check_ray_installed, run_on_flower
from simulation.hospitals import RehearsalCohort, make_cohort
from simulation.local_grid import run_in_process
from simulation.loopback import check_port, run_on_loopback
from simulation.progress import Display
from simulation.resume import LOCK_FILE, SETTINGS_FILE, as_begun, keep_cohort, keep_settings, kept_cohort


def rehearse(config: RunConfig, display: Display) -> Path:
    """Run a rehearsal from nothing, or with `resume` from wherever it was left, to the report.

    Returns: the report.
    Raises: PanfmError in one line when it cannot be done; the report of a run that started is written all the same.
    """
    config = named(config, datetime.now())
    runs = Path(config.runs).resolve()
    run_folder = runs / config.run_name
    config = _ready(config, runs)
    with held(run_folder / LOCK_FILE):
        if not config.resume:
            keep_settings(run_folder, config)
        elif not _has_begun(run_folder):
            config = as_begun(run_folder, config)
        cohort = _cohort(config, run_folder, display)
        return _rehearse(config, run_folder, cohort, display)


def _cohort(config: RunConfig, run_folder: Path, display: Display) -> RehearsalCohort:
    """The hospitals: those that are there, or new ones."""
    started = time.monotonic()
    cohort = kept_cohort(run_folder)
    if cohort is None:
        cohort = make_cohort(config, run_folder, public_hex(coordinator_key(run_folder.parent)), display.advance)
        keep_cohort(run_folder, cohort)
    display.say(f"{len(cohort.hospitals)} hospitals ready after {time.monotonic() - started:.0f} s in {run_folder}")
    return cohort


def _rehearse(config: RunConfig, run_folder: Path, cohort: RehearsalCohort, display: Display) -> Path:
    """The study and what comes after it."""
    try:
        if not _only_to_look_back(config, run_folder):
            _conduct(config, run_folder.parent, cohort)
    except KeyboardInterrupt:  # who stops a run does not wait for probes
        _write_report(run_folder)
        raise
    except PanfmError:
        with contextlib.suppress(PanfmError):  # the run's own failure is the one to tell of
            _look_back(config, run_folder, cohort, display)
        raise
    _look_back(config, run_folder, cohort, display)
    return run_folder / "report.html"


def _has_begun(run_folder: Path) -> bool:
    record = run_folder / RECORD_FILE
    return record.exists() and any(read_record(record))


def _only_to_look_back(config: RunConfig, run_folder: Path) -> bool:
    """Whether the study is over, and the rehearsal died before it was probed."""
    if not config.resume:
        return False
    events = list(read_record(run_folder / RECORD_FILE))
    start, end = start_of(events), end_of(events)
    over = start is not None and end is not None and end.rounds_done >= start.rounds
    return over and not any(isinstance(event, ProbeTable) for event in events)


def _conduct(config: RunConfig, runs: Path, cohort: RehearsalCohort) -> None:
    match config.engine:
        case Engine.in_process:
            run_in_process(config, runs, cohort.hospitals)
        case Engine.loopback:
            run_on_loopback(config, runs, cohort.hospitals)
        case Engine.flower:
            run_on_flower(config, runs, cohort.hospitals)


def named(config: RunConfig, now: datetime) -> RunConfig:
    """The run with a name: its own, or the recipe's and the time."""
    return config if config.run_name else replace(config, name=f"{config.recipe}-{now:%Y%m%d-%H%M%S}")


def _ready(config: RunConfig, runs: Path) -> RunConfig:
    """The run with its paths made absolute, for Flower's programs work elsewhere.

    Raises: PanfmError for what would end the run after minutes of making hospitals and can be known now.
    """
    _check_folder(config, runs)
    check_device(config.device)
    if config.engine is Engine.loopback:
        check_port(config.port)
    if config.engine is Engine.flower:
        check_ray_installed()
    if config.data:
        config = replace(config, data=str(Path(config.data).resolve()))
    if not config.init_from:
        return config
    config = replace(config, init_from=str(Path(config.init_from).resolve()))
    first_model(recipes.recipe_of(config), config.init_from)
    return config


def _check_folder(config: RunConfig, runs: Path) -> None:
    folder = runs / config.run_name
    if config.resume:
        if not (folder / SETTINGS_FILE).is_file():
            raise ConfigError(f"there is no rehearsal called {config.resume} in {runs}; check resume= and runs=")
        return
    check_new(runs, config.name)
    if folder.exists():
        raise ConfigError(
            f"there is a folder {folder} already; give another name=, remove it, or go on with it: resume={config.name}"
        )


def _look_back(config: RunConfig, run_folder: Path, cohort: RehearsalCohort, display: Display) -> None:
    """Probe what was learned, and write every hospital's own report and the run's."""
    if (run_folder / "model").is_dir():
        model = read_model(run_folder / "model")
        _audit(recipes.recipe_of(config), run_folder, display)
        for line in _probe(config, run_folder, cohort):
            display.say(line)
        catch_up(run_folder, tensorboard=config.tensorboard, mlflow=config.mlflow)
        for place, (site, folder) in enumerate(cohort.hospitals.items(), start=1):
            make_site_report(folder, model)
            display.advance("hospitals' own reports", place, len(cohort.hospitals), site)
    _write_report(run_folder)


def _audit(recipe: Recipe, run_folder: Path, display: Display) -> None:
    """Of a run with privacy, what its trainer is shown to tell of subjects, beside what is claimed."""
    if recipe.privacy.is_on:
        from simulation.audited import audit_line, audited  # Opacus comes with it, and takes seconds

        audit = audited(recipe)
        RunRecord(run_folder).write(audit)
        display.say(audit_line(audit))


def _write_report(run_folder: Path) -> None:
    if (run_folder / RECORD_FILE).exists():
        write_run_report(run_folder)


def _probe(config: RunConfig, run_folder: Path, cohort: RehearsalCohort) -> list[str]:
    recipe = recipes.recipe_of(config)
    probe, test = (read_held_out(cohort.evaluation, recipe, split) for split in ("probe", "test"))
    answers = check_learning(read_model(run_folder / "model").teacher, recipe, probe, test)
    note = (
        "Probe subjects are the brains that trained; labels were not used in pre-training. Test brains were seen by no site."
        if config.cohort.kind is CohortKind.real
        else "Probe and test subjects are complete, mix the hospitals' scanners, and were seen by no site."
    )
    table = ProbeTable(
        title="What frozen embeddings say of held-out subjects",
        num_train=len(probe.dataset),
        num_test=len(test.dataset),
        rows=to_rows(answers),
        note=note,
    )
    RunRecord(run_folder).write(table)
    return probe_lines(table)


def probe_lines(table: ProbeTable) -> list[str]:
    """The table as lines for a terminal."""
    lines = [f"{table.title} ({table.num_train} to fit, {table.num_test} to test):"]
    for row in table.rows:
        value = f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        lines.append(f"  {row['target']:<24}{row['metric']:<20}{row['embedding']:<42}{value}")
    return lines
