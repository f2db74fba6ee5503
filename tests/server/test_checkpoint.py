"""Checkpoints: what is read is what was written, or it is not read at all and the one before serves."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import CheckpointError
from panfm.export.model_folder import ModelFolder, make_card, read_model
from panfm.reporting.record import RoundFinished
from server.aggregation.state import ServerState
from server.checkpoint import KEPT, Checkpoint, newest_checkpoint, read_checkpoint, write_checkpoint
from server.run_record import Witness
from tests.client.small_study import same_bits

FILES = (
    "student.safetensors",
    "teacher.safetensors",
    "moments.safetensors",
    "recipe.yaml",
    "card.json",
    "checkpoint.json",
)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipes.recipe_of(recipes.load(["recipe=smoke"]))


def _checkpoint(recipe: Recipe, number: int, run: str = "small-1") -> Checkpoint:
    student = {"trunk.x": torch.arange(4.0) + number, "organs.liver.y": torch.tensor(-0.0)}
    teacher = {name: tensor / 3 for name, tensor in student.items()}
    card = make_card(run, number, student, teacher, recipe, ("0", "0"))
    finished = RoundFinished(
        round=number,
        seconds=0.1,
        weights={"trunk": {"a": 1 / 3, "b": 2 / 3}},
        unchanged_groups={"liver": "nobody"},
        delta_norm={"trunk": 1e-30},
        model_digest="0" * 64,
    )
    return Checkpoint(
        model=ModelFolder(student=student, teacher=teacher, recipe=recipe, card=card),
        state=ServerState(moments={"first/trunk.x": torch.ones(4)}, past_norms={"trunk": [0.1, 1e300]}),
        record=Witness(size_bytes=17, sha256="a" * 64),
        finished=finished if number else None,
    )


def _written(folder: Path, recipe: Recipe, *numbers: int) -> None:
    for number in numbers:
        write_checkpoint(folder, _checkpoint(recipe, number))


def _places(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [0, 7])
def test_all_of_it_comes_back_bit_for_bit(tmp_path: Path, recipe: Recipe, number: int) -> None:
    written = _checkpoint(recipe, number)
    write_checkpoint(tmp_path, written)
    found = newest_checkpoint(tmp_path, "small-1")
    assert found.damaged == ()
    read = found.checkpoint
    assert read.round == number
    assert (read.finished, read.record, read.state.past_norms) == (
        written.finished,
        written.record,
        written.state.past_norms,
    )
    assert same_bits(read.model.student, written.model.student)
    assert same_bits(read.model.teacher, written.model.teacher)
    assert same_bits(read.state.moments, written.state.moments)
    assert read.model.card == written.model.card


def test_start_of_a_run_without_any_moment(tmp_path: Path, recipe: Recipe) -> None:
    write_checkpoint(tmp_path, replace(_checkpoint(recipe, 0), state=ServerState()))
    assert newest_checkpoint(tmp_path, "small-1").checkpoint.state == ServerState()


def test_the_last_two_are_kept_in_order_of_rounds(tmp_path: Path, recipe: Recipe) -> None:
    _written(tmp_path, recipe, 0, 8, 9, 10, 11)
    assert KEPT == 2
    assert _places(tmp_path) == ["round-0010", "round-0011"]
    _written(tmp_path, recipe, 9999, 10000)
    assert newest_checkpoint(tmp_path, "small-1").checkpoint.round == 10000
    assert _places(tmp_path) == ["round-10000", "round-9999"]


def test_each_is_a_model_that_everybody_can_read(tmp_path: Path, recipe: Recipe) -> None:
    _written(tmp_path, recipe, 3)
    assert read_model(tmp_path / "checkpoints" / "round-0003").card.round == 3


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "flipped"])
def test_damage_to_any_file_is_found_and_the_checkpoint_before_serves(
    tmp_path: Path, recipe: Recipe, name: str, damage: str
) -> None:
    _written(tmp_path, recipe, 3, 4)
    file = tmp_path / "checkpoints" / "round-0004" / name
    content = file.read_bytes()
    match damage:
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case "cut":
            file.write_bytes(content[: len(content) // 2])
        case "flipped":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = newest_checkpoint(tmp_path, "small-1")
    assert found.checkpoint.round == 3
    (word,) = found.damaged
    assert "round-0004" in word
    assert "\n" not in word


def test_both_damaged_or_none_there_is_one_clear_line(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(
        CheckpointError, match=r"no checkpoint can be gone on from: none lies in .*checkpoints; restore"
    ):
        newest_checkpoint(tmp_path, "small-1")
    _written(tmp_path, recipe, 3, 4)
    for place in ("round-0003", "round-0004"):
        (tmp_path / "checkpoints" / place / "card.json").unlink()
    with pytest.raises(CheckpointError, match=r"round-0004.*round-0003.*restore one from a copy") as caught:
        newest_checkpoint(tmp_path, "small-1")
    assert "\n" not in str(caught.value)


def test_checkpoint_of_another_run_is_not_gone_on_from(tmp_path: Path, recipe: Recipe) -> None:
    write_checkpoint(tmp_path, _checkpoint(recipe, 5, run="another-2"))
    with pytest.raises(CheckpointError, match="is of the run another-2, not of small-1"):
        read_checkpoint(tmp_path / "checkpoints" / "round-0005", "small-1")


def test_parts_of_two_checkpoints_are_not_one(tmp_path: Path, recipe: Recipe) -> None:
    """Each file is whole, and they do not belong together."""
    _written(tmp_path, recipe, 3, 4)
    old, new = (tmp_path / "checkpoints" / f"round-000{number}" for number in (3, 4))
    shutil.copy(old / "checkpoint.json", new / "checkpoint.json")
    with pytest.raises(CheckpointError, match="other digests than it says"):
        read_checkpoint(new, "small-1")


def test_draft_of_a_killed_writer_is_no_checkpoint(tmp_path: Path, recipe: Recipe) -> None:
    _written(tmp_path, recipe, 3)
    place = tmp_path / "checkpoints" / "round-0003"
    shutil.copytree(place, place.with_name(".round-0004.draft"))
    assert newest_checkpoint(tmp_path, "small-1").checkpoint.round == 3
    _written(tmp_path, recipe, 4)
    assert newest_checkpoint(tmp_path, "small-1").checkpoint.round == 4
