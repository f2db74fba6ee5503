"""The public start: one command's model, from which a study with privacy begins, and of which it changes only the adapters."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from panfm import recipes
from panfm.config import PrivacyMode, RunConfig
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.export.model_folder import read_model
from panfm.models.build import initial_parameters
from panfm.pretrain.private_round import train_private_round
from panfm.pretrain.private_scope import trained_names
from panfm.reporting.record import RunStarted, SiteAnswered, read_record
from server.study import first_model
from simulation.progress import Display
from simulation.rehearsal import rehearse

SMALL_MODEL = ("model.width=24", "model.depth=2", "model.adapter_width=8", "model.predictor_width=32")
SMALL_START = (
    "rounds=1",
    "workers=1",
    "cohort.voxels=16",
    "cohort.subjects_per_site=8",
    "cohort.probe_subjects=24",
    "cohort.test_subjects=24",
    "pretrain.batch_size=4",
    "pretrain.steps_per_round=2",
)


def _rehearse(config: RunConfig) -> Path:
    with Display(Console(file=io.StringIO())) as display:
        return rehearse(config, display).parent


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a public start, at the grids of the smallest study."""
    runs = tmp_path_factory.mktemp("runs")
    config = recipes.load(["recipe=public_start", "name=start", f"runs={runs}", *SMALL_MODEL, *SMALL_START])
    return _rehearse(replace(config, organs=recipes.load(["recipe=smoke"]).organs))


def _study(*settings: str) -> RunConfig:
    return recipes.load(["recipe=smoke", "privacy.mode=dp_adapters", *settings])


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_start_fits_the_demo_and_shares_nobody_with_it() -> None:
    ours, demo = recipes.load(["recipe=public_start"]), recipes.load(["recipe=demo"])

    assert (ours.organs, ours.model) == (demo.organs, demo.model)
    assert ours.privacy.mode is PrivacyMode.none
    assert ours.seed != demo.seed, "synthetic people follow from the seed"
    assert ours.sites == 1


def test_one_hospital_of_the_start_holds_every_organ(start: Path) -> None:
    (hospital,) = (start / "hospitals").iterdir()
    held = {entry.organ for entry in PreparedStore.open(hospital / "store").entries}
    assert held == {"brain", "heart", "liver"}


def test_study_with_privacy_begins_from_the_start(start: Path) -> None:
    recipe = recipes.recipe_of(_study())
    source = read_model(start / "model")

    model = first_model(recipe, str(start / "model"))

    assert not _moved(model.student, source.student)
    assert not _moved(model.teacher, source.teacher)
    assert _moved(model.student, initial_parameters(recipe.model, recipe.organs, recipe.seed)), "it was trained"


def test_private_round_from_the_start_moves_adapters_and_predictors_only(start: Path) -> None:
    recipe = recipes.recipe_of(_study())
    model = first_model(recipe, str(start / "model"))
    (hospital,) = (start / "hospitals").iterdir()  # whose scans they are matters to nobody here
    dataset = SubjectDataset(PreparedStore.open(hospital / "store"), list(recipe.organs), recipe.organs)

    trained = train_private_round(model.student, model.teacher, dataset, recipe, recipe.privacy, round_number=1)

    names = trained_names(model.student, PrivacyMode.dp_adapters, recipe, dataset.organs)
    assert sorted(trained.deltas) == names
    assert all(delta.any() for delta in trained.deltas.values()), "each was noised"
    assert {name.split(".")[0] for name in names} == {"organs", "heads"}
    assert not any(word in name for name in names for word in ("patch_embed", "token", "trunk"))


@pytest.mark.slow
def test_whole_study_with_privacy_keeps_the_trunk_of_the_start(start: Path, tmp_path: Path) -> None:
    study = _rehearse(
        _study(
            "name=study", f"runs={tmp_path}", f"init_from={start / 'model'}", "rounds=1", "cohort.subjects_per_site=6"
        )
    )

    events = list(read_record(study / "record.jsonl"))
    assert [event.init_from for event in events if isinstance(event, RunStarted)] == [str(start / "model")]
    outcomes = {event.site: event.outcome for event in events if isinstance(event, SiteAnswered)}
    assert set(outcomes.values()) == {"accepted"}
    before, after = read_model(start / "model"), read_model(study / "model")
    recipe = recipes.recipe_of(_study())
    adapted = set(trained_names(before.student, PrivacyMode.dp_adapters, recipe, list(recipe.organs)))
    for part in ("student", "teacher"):
        moved = _moved(getattr(before, part), getattr(after, part))
        assert moved
        assert moved <= adapted, f"the {part} keeps all else bit for bit"
