"""A whole run at the coordinator: start, join, rounds, checkpoints, and an honest end.

The settings come as one YAML string in Flower's run config; the folder for runs is the coordinator's own and is named by
the node config of a rehearsal or by the environment variable PANFM_RUNS_DIR of a deployment, never by a message.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from panfm.models.build import initial_parameters
from panfm.reporting.record import RunFinished, RunStarted
from server.participants import Participants
from server.rounds import GlobalModel, Outcome, RoundRunner
from server.run_folder import check_new, coordinator_key, export_model, new_run_id, write_checkpoint
from server.run_record import RunRecord

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
    """Run the study to its end.

    Raises: ConfigError when its name cannot be used, PanfmError when it could not start, was incomplete, or collapsed;
        in all but the first case the record says so too.
    """
    check_new(settings.runs, settings.config.name)
    study = _Study(settings, grid)
    try:
        study.start()
        study.run_rounds()
    except KeyboardInterrupt:
        study.finish("stopped", "stopped by a person")
        raise
    except PanfmError as error:
        study.finish("incomplete", str(error))
        raise
    except Exception as error:  # a defect, or a full disk: its own words stay in this program's log
        study.finish("incomplete", f"the coordinator's program failed ({type(error).__name__}); its own log says why")
        raise
    shortfall = study.shortfall()
    study.finish("incomplete" if shortfall else "complete", shortfall)
    if shortfall:
        raise RunError(f"the run is incomplete: {shortfall}")


class _Study:
    """The state of one run: the model, the rounds done, and what each organ got."""

    def __init__(self, settings: StudySettings, grid: Grid) -> None:
        config = settings.config
        self._config, self._recipe = config, recipes.recipe_of(config)
        self._folder = settings.runs / config.name
        self._run = new_run_id(config.name)
        self._record = RunRecord(self._folder)
        self._participants = Participants(grid, self._recipe, self._record)
        self._runner = RoundRunner(
            grid=grid, run=self._run, recipe=self._recipe, key=coordinator_key(settings.runs), record=self._record
        )
        self._started = time.monotonic()
        self._rounds_done = 0
        self._thin_rounds: list[int] = []
        self._trained: set[str] = set()
        self._model: GlobalModel | None = None

    def start(self) -> None:
        """Make the first model, put the start on record, and wait for sites."""
        torch.set_num_threads(self._recipe.threads)
        self._model = first_model(self._recipe, self._config.init_from)
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
                init_from=self._config.init_from,
            )
        )
        self._participants.wait_for_start()

    def run_rounds(self) -> None:
        """All rounds, each ended by a checkpoint. Raises: RunError when the federation collapsed."""
        assert self._model is not None
        collapsed = 0
        for number in range(1, self._recipe.rounds + 1):
            self._participants.ask_new_nodes()
            model, outcome, finished = self._runner.run_round(number, self._model, self._participants.sites)
            write_checkpoint(self._folder, self._model_folder(model, number))
            # Only now: a round that stands on record has its model on disk, at whatever moment the run is stopped.
            self._model, self._rounds_done = model, number
            self._record.write(finished)
            self._count(number, outcome)
            collapsed = collapsed + 1 if outcome.collapsed and not outcome.accepted else 0
            if collapsed == COLLAPSED_ROUNDS:
                raise RunError(
                    f"every site's features collapsed in {collapsed} rounds; lower the learning rate or the teacher's momentum"
                )

    def shortfall(self) -> str:
        """What the run fell short of, in one line; empty when it did what it was to do."""
        joined = {
            organ for site in self._participants.sites.values() for organ in site.organs if organ in self._recipe.organs
        }
        untrained = [organ for organ in self._recipe.organs if organ in joined - self._trained]
        parts = []
        if self._thin_rounds:
            rounds = ", ".join(str(number) for number in self._thin_rounds)
            parts.append(f"fewer than {self._recipe.federation.min_sites} sites were accepted in round {rounds}")
        if untrained:
            parts.append(f"nobody's training of {', '.join(untrained)} was accepted")
        return "; ".join(parts)

    def finish(self, status: str, reason: str) -> None:
        """Export what there is and put the end on record."""
        exported = ""
        if self._model is not None and self._rounds_done:
            exported = export_model(self._folder, self._model_folder(self._model, self._rounds_done)).name
        seconds = time.monotonic() - self._started
        self._record.write(
            RunFinished(
                status=status,
                reason=reason,
                rounds_done=self._rounds_done,
                seconds=seconds,
                model=exported,
            )
        )
        log.info("run %s is %s after %d rounds and %.0f s", self._config.name, status, self._rounds_done, seconds)

    def _count(self, number: int, outcome: Outcome) -> None:
        if len(outcome.accepted) < self._recipe.federation.min_sites:
            self._thin_rounds.append(number)
        for answer in outcome.accepted:
            self._trained.update(organ for organ, count in answer.organ_subjects.items() if count)
        loss = [answer.metrics.loss for answer in outcome.accepted if answer.metrics]
        told = f"mean loss {sum(loss) / len(loss):.4f}" if loss else "nobody told a loss"
        log.info("round %d of %d: %d sites accepted, %s", number, self._recipe.rounds, len(outcome.accepted), told)

    def _model_folder(self, model: GlobalModel, rounds_done: int) -> ModelFolder:
        student, teacher = model.student, model.teacher
        card = make_card(self._run, rounds_done, student, teacher, self._recipe, (panfm.__version__, torch.__version__))
        return ModelFolder(student=student, teacher=teacher, recipe=self._recipe, card=card)


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
