"""A whole run at the coordinator: start or resume, join, rounds, checkpoints, evaluations, and an honest end.

The settings come as one YAML string in Flower's run config; the folder for runs is the coordinator's own and is named by
the node config of a rehearsal or by the environment variable PANFM_RUNS_DIR of a deployment, never by a message. A run that
is resumed takes its recipe from its own record: what the new process was started with names the run and nothing else.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid

import panfm
from panfm import recipes, update
from panfm.config import Recipe, RunConfig
from panfm.errors import CheckpointError, ConfigError, PanfmError, RunError
from panfm.export.model_folder import ModelFolder, make_card, read_model
from panfm.groups import split_by_group
from panfm.lock import held
from panfm.models.build import initial_parameters
from panfm.reporting.followers import following
from panfm.reporting.record import RoundFinished, RunFinished, RunStarted, read_record
from server.aggregation.state import ServerState
from server.attendance import ACCEPTED
from server.checkpoint import Checkpoint, checkpoint_place, write_checkpoint
from server.coverage import coverage_rows, shortfall
from server.evaluation_round import Evaluator
from server.evaluations import Evaluations, evaluations_of
from server.exchange import Post
from server.journal import OpenRound, all_collapsed
from server.participants import Participants
from server.resume import Resumption, resumption, start_to_resume
from server.rounds import EndedRound, GlobalModel, RoundRunner
from server.run_folder import (
    LOCK_FILE,
    RECORD_FILE,
    check_new,
    check_resumable,
    coordinator_key,
    export_model,
    new_run_id,
)
from server.run_record import RunRecord
from server.spool import Spool
from server.stopping import StopWishedError, SuperLinkLostError, WatchedGrid

log = logging.getLogger("panfm.server")

COLLAPSED_ROUNDS = 2
"""Rounds in a row in which every answering site collapsed, after which the run stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What the coordinator's program was started with."""

    config: RunConfig
    runs: Path


def read_settings(context: Context) -> StudySettings:
    """The settings of this run. Raises: ConfigError when they are missing or mistaken."""
    composed = str(context.run_config.get("composed", ""))
    if not composed:
        raise ConfigError("the run config has no composed recipe; start runs with panfm, which composes it")
    runs = context.node_config.get("runs-dir") or os.environ.get("PANFM_RUNS_DIR")
    if not runs:
        raise ConfigError("the coordinator has no folder for runs; set PANFM_RUNS_DIR where its programs are started")
    return StudySettings(config=recipes.run_from_yaml(composed), runs=Path(str(runs)))


def conduct(settings: StudySettings, grid: Grid) -> None:
    """Run the study to its end, from its beginning or, with `resume`, from where it was left.

    Raises: ConfigError when its name cannot be used or it cannot be resumed, LockedError while another process runs it,
        CheckpointError or DataError when what is to be resumed is damaged; PanfmError when it could not start, was
        incomplete, or collapsed, and then the record says so too; SuperLinkLostError when another process must go on.
    """
    config, runs = settings.config, settings.runs
    (check_resumable if config.resume else check_new)(runs, config.run_name)
    grid = WatchedGrid(grid, runs / config.run_name)
    with held(runs / config.run_name / LOCK_FILE):
        if config.resume:
            study, begin = _Study.of_record(runs, config.resume, grid)
        else:
            check_new(runs, config.name)  # again: another coordinator may have begun and ended meanwhile
            study = _Study(runs, config.name, recipes.recipe_of(config), new_run_id(config.name), grid)
            begin = partial(study.start, config.init_from)
        with following(runs / config.run_name, tensorboard=config.tensorboard, mlflow=config.mlflow):
            _to_its_end(study, begin)


def _to_its_end(study: _Study, begin: Callable[[], None]) -> None:
    try:
        begin()
        study.run_rounds()
    except KeyboardInterrupt:
        study.finish("stopped", "stopped by a person")
        raise
    except StopWishedError as wish:
        study.finish("stopped", str(wish))
        return
    except SuperLinkLostError:
        raise  # not the run's end
    except PanfmError as error:
        study.finish("incomplete", str(error))
        raise
    except OSError as error:
        study.finish(
            "incomplete", f"a file of the run: {error.strerror or type(error).__name__}; mend that, then resume"
        )
        raise
    except Exception as error:  # a defect: its own words stay in this program's log
        study.finish("incomplete", f"the coordinator's program failed ({type(error).__name__}); its own log says why")
        raise
    lacking = study.shortfall()
    study.finish("incomplete" if lacking else "complete", lacking)
    if lacking:
        raise RunError(f"the run is incomplete: {lacking}")


class _Study:
    """The state of one run at the coordinator. What must outlive the process is in its record and checkpoints."""

    def __init__(self, runs: Path, name: str, recipe: Recipe, run: str, grid: Grid) -> None:
        self._name, self._recipe, self._run = name, recipe, run
        self._folder = runs / name
        self._record = RunRecord(self._folder)
        self._spool = Spool(self._folder / "spool")
        self._participants = Participants(grid, recipe, self._record)
        self._runner = RoundRunner(
            post=Post(grid),
            run=run,
            recipe=recipe,
            key=coordinator_key(runs),
            record=self._record,
            spool=self._spool,
        )
        self._evaluations = Evaluations(recipe.federation)
        self._began = time.monotonic()
        self._rounds_done = 0
        self._collapsed_in_a_row = 0
        self._opened = OpenRound(number=1)
        self._model: GlobalModel | None = None
        self._digest = ""
        """Of the model, as on record."""
        self._state = ServerState()

    @classmethod
    def of_record(cls, runs: Path, name: str, grid: Grid) -> tuple[_Study, Callable[[], None]]:
        """A run that goes on, and how."""
        events = list(read_record(runs / name / RECORD_FILE))
        start = start_to_resume(runs / name, events)
        study = cls(runs, name, recipes.recipe_from_yaml(start.recipe), start.run, grid)
        study._evaluations = evaluations_of(events, study._recipe.federation)
        return study, partial(study.go_on, resumption(study._folder, study._record, events))

    def start(self, init_from: str) -> None:
        """Make the first model, keep it, put the start on record, and wait for sites."""
        torch.set_num_threads(self._recipe.threads)
        self._model = first_model(self._recipe, init_from)
        self._keep(finished=None)
        groups = split_by_group(self._model.student)
        self._record.write(
            RunStarted(
                run=self._run,
                recipe=recipes.to_yaml(self._recipe),
                seed=self._recipe.seed,
                rounds=self._recipe.rounds,
                panfm_version=panfm.__version__,
                torch_version=torch.__version__,
                flower_version=version("flwr"),
                group_parameters={group: sum(t.numel() for t in named.values()) for group, named in groups.items()},
                init_from=init_from,
            )
        )
        self._participants.wait_for_start()

    def go_on(self, past: Resumption) -> None:
        """Take over from another process, and wait for sites."""
        torch.set_num_threads(self._recipe.threads)
        kept = past.checkpoint
        self._model = GlobalModel(student=kept.model.student, teacher=kept.model.teacher)
        self._digest = kept.finished.model_digest if kept.finished else ""
        self._state, self._rounds_done = kept.state, kept.round
        self._opened, self._collapsed_in_a_row = past.opened, past.collapsed_in_a_row
        self._record.write(past.resumed)
        self._evaluations.note(past.resumed)
        if past.unrecorded is not None:
            self._record.write(past.unrecorded)
        self._spool.drop(before=kept.round + 1)
        log.info(
            "run %s goes on after round %d%s",
            self._name,
            kept.round,
            f": {past.resumed.note}" if past.resumed.note else "",
        )
        if self._rounds_done < self._recipe.rounds or self._evaluation_is_due():
            self._participants.wait_for_start()
        self._evaluate_if_due()

    def run_rounds(self) -> None:
        """The rounds that are left, each ended by a checkpoint. Raises: RunError when the federation collapsed."""
        for number in range(self._rounds_done + 1, self._recipe.rounds + 1):
            opened = self._opened if self._opened.number == number else OpenRound(number=number)
            self._run_round(number, opened)
            self._evaluate_if_due()
            if self._collapsed_in_a_row >= COLLAPSED_ROUNDS:
                raise RunError(
                    f"every site's training diverged or collapsed in {self._collapsed_in_a_row} rounds; lower the learning rate"
                    " or the teacher's momentum"
                )

    def _run_round(self, number: int, opened: OpenRound) -> None:
        assert self._model is not None
        ended = self._runner.run_round(self._participants.plan(number), opened, self._model, self._state)
        self._model, self._state, self._digest = ended.model, ended.state, ended.finished.model_digest
        self._keep(ended.finished)
        # Only now: a round that stands on record has its model on disk, at whatever moment the run is stopped.
        self._rounds_done = number
        self._record.write(ended.finished)
        self._spool.drop(before=number + 1)
        self._tell(number, ended)
        collapsed = all_collapsed(ended.answers.values())
        self._collapsed_in_a_row = self._collapsed_in_a_row + 1 if collapsed else 0

    def shortfall(self) -> str:
        """What the run fell short of, in one line; empty when it did what it was to do."""
        return shortfall(self._record.attendance, self._recipe)

    def finish(self, status: str, reason: str) -> None:
        """Export what there is and put the end on record."""
        self._model = None  # it may be half of the next one; what counts is on disk
        exported = ""
        if self._rounds_done:
            exported = export_model(self._folder, read_model(checkpoint_place(self._folder, self._rounds_done))).name
        self._record.write(
            RunFinished(
                status=status,
                reason=reason,
                rounds_done=self._rounds_done,
                seconds=time.monotonic() - self._began,
                model=exported,
                coverage=coverage_rows(self._record.attendance, self._recipe),
            )
        )
        log.info("run %s is %s after %d rounds", self._name, status, self._rounds_done)

    def _evaluation_is_due(self) -> bool:
        return self._evaluations.is_due(self._rounds_done, self._recipe.rounds)

    def _evaluate_if_due(self) -> None:
        """Have the sites evaluate the model as it is now; nothing of it changes the run."""
        if not self._evaluation_is_due():
            return
        evaluator = Evaluator(
            run=self._run,
            recipe=self._recipe,
            key=self._runner.key,
            folder=self._folder,
            record=self._record,
            past=self._evaluations,
            ask=self._runner.ask,
        )
        evaluator.evaluate(self._as_folder(), self._participants.sites, self._runner.as_received, self._digest)

    def _keep(self, finished: RoundFinished | None) -> None:
        """Write the checkpoint of a round, or of the start."""
        model = self._as_folder(finished.round if finished else 0)
        kept = Checkpoint(model=model, state=self._state, record=self._record.witness(), finished=finished)
        write_checkpoint(self._folder, kept)

    def _as_folder(self, number: int | None = None) -> ModelFolder:
        """The model as it stands after a round; None: the last that was done."""
        assert self._model is not None
        number = self._rounds_done if number is None else number
        student, teacher = self._model.student, self._model.teacher
        card = make_card(self._run, number, student, teacher, self._recipe, (panfm.__version__, torch.__version__))
        return ModelFolder(student=student, teacher=teacher, recipe=self._recipe, card=card)

    def _tell(self, number: int, ended: EndedRound) -> None:
        counted = [answer for answer in ended.answers.values() if answer.outcome == ACCEPTED]
        loss = [answer.metrics["loss"] for answer in counted if answer.metrics]
        told = f"mean loss {sum(loss) / len(loss):.4f}" if loss else "nobody told a loss"
        log.info("round %d of %d: %d sites accepted, %s", number, self._recipe.rounds, len(counted), told)


def first_model(recipe: Recipe, init_from: str) -> GlobalModel:
    """The model before the first round: seeded, with every group that an exported model has taken from there.

    Raises: CheckpointError when the exported model is of another size or grid, or has no group of this recipe.
    """
    seeded = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    if not init_from:
        return GlobalModel(student=seeded, teacher=update.clone(seeded))
    exported = read_model(Path(init_from))
    return GlobalModel(
        student=_taken_over(seeded, exported.student, init_from),
        teacher=_taken_over(seeded, exported.teacher, init_from),
    )


def _taken_over(
    seeded: Mapping[str, torch.Tensor], exported: Mapping[str, torch.Tensor], source: str
) -> dict[str, torch.Tensor]:
    common = seeded.keys() & exported.keys()
    if not common:
        raise CheckpointError(f"the model in {source} has no parameter of this recipe; name another model or recipe")
    for name in sorted(common):
        if seeded[name].shape != exported[name].shape:
            got, expected = tuple(exported[name].shape), tuple(seeded[name].shape)
            raise CheckpointError(
                f"the model in {source} has {name} of shape {got}, this recipe needs {expected}; use its recipe"
            )
    return {name: (exported if name in common else seeded)[name].clone() for name in sorted(seeded)}
