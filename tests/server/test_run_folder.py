"""What a run leaves on the coordinator's disk: the last checkpoints, the exported model, and a name of its own."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panfm import recipes, update
from panfm.errors import ConfigError
from panfm.export.model_folder import ModelFolder, make_card, read_model
from panfm.reporting.record import SiteRejected, to_line
from panfm.signing import public_hex
from server.run_folder import (
    RECORD_FILE,
    check_new,
    check_resumable,
    coordinator_key,
    export_model,
    new_run_id,
)


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    parameters = {"trunk.x": torch.arange(3.0)}
    recipe = recipes.recipe_of(recipes.load(["recipe=smoke"]))
    card = make_card("small-1", 1, parameters, parameters, recipe, ("0", "0"))
    return ModelFolder(student=parameters, teacher=parameters, recipe=recipe, card=card)


def test_exported_model_replaces_an_older_one(tmp_path: Path, model: ModelFolder) -> None:
    export_model(tmp_path, model)
    other = {"trunk.x": torch.ones(3)}
    digest = update.digest(other)
    card = replace(model.card, student_digest=digest, teacher_digest=digest)
    assert export_model(tmp_path, replace(model, student=other, teacher=other, card=card)) == tmp_path / "model"
    assert torch.equal(read_model(tmp_path / "model").student["trunk.x"], torch.ones(3))


def test_coordinator_keeps_its_key(tmp_path: Path) -> None:
    first = public_hex(coordinator_key(tmp_path / "runs"))
    assert public_hex(coordinator_key(tmp_path / "runs")) == first
    assert (tmp_path / "runs" / "coordinator.key").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["demo-20260101-120000", "a", "A.b_c-9"])
def test_run_may_have_any_plain_name_once(tmp_path: Path, name: str) -> None:
    check_new(tmp_path, name)
    (tmp_path / name).mkdir()
    check_new(tmp_path, name)  # a rehearsal puts its hospitals there first
    (tmp_path / name / RECORD_FILE).write_text('{"schema": 1, "event": "run_st')
    check_new(tmp_path, name)  # killed before its first line was whole: it never began
    (tmp_path / name / RECORD_FILE).write_text(to_line(SiteRejected(site="a", reason="b")) + "\n")
    with pytest.raises(ConfigError, match="already; give another name="):
        check_new(tmp_path, name)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "/root", "-flag", "a\nb", "a b", "ä", "x" * 101])
def test_name_that_cannot_be_a_folder_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name= should be") as caught:
        check_new(tmp_path, name)
    assert "\n" not in str(caught.value)


def test_two_runs_of_a_name_have_two_ids() -> None:
    ids = {new_run_id("demo") for _ in range(100)}
    assert len(ids) == 100
    assert all(run.startswith("demo-") for run in ids)


def test_run_that_is_not_there_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run called absent in .* that could be resumed; check resume= and runs="):
        check_resumable(tmp_path, "absent")
    with pytest.raises(ConfigError, match="name= should be"):
        check_resumable(tmp_path, "../absent")
    assert list(tmp_path.iterdir()) == []
