"""A model on disk is what was written, bit for bit, or an error that says what to do."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm import recipes, update
from panfm.errors import CheckpointError
from panfm.export.model_folder import FORMAT, ModelFolder, make_card, read_model, write_model
from panfm.models.build import initial_parameters

RECIPE = recipes.recipe_of(recipes.load(["recipe=smoke"]))
FILES = ("card.json", "recipe.yaml", "student.safetensors", "teacher.safetensors")


def _model() -> ModelFolder:
    student = initial_parameters(RECIPE.model, RECIPE.organs, 0)
    teacher = initial_parameters(RECIPE.model, RECIPE.organs, 1)
    return ModelFolder(
        student=student,
        teacher=teacher,
        recipe=RECIPE,
        card=make_card("small-1", 3, student, teacher, RECIPE, ("0.1.0", "2.13.0")),
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    write_model(folder, _model())
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "model"))


def test_model_is_read_back_bit_for_bit(written: Path) -> None:
    model, read = _model(), read_model(written)
    assert sorted(path.name for path in written.iterdir()) == sorted(FILES)
    assert (read.card, read.recipe) == (model.card, model.recipe)
    for part in ("student", "teacher"):
        assert update.digest(getattr(read, part)) == update.digest(getattr(model, part))
        assert getattr(read.card, f"{part}_digest") == update.digest(getattr(model, part))


def test_card_says_what_a_reader_must_know(written: Path) -> None:
    card = json.loads((written / "card.json").read_text())
    assert card["organs"] == ["brain", "heart", "liver"]
    assert (card["run"], card["round"], card["format"]) == ("small-1", 3, FORMAT)
    assert (card["panfm_version"], card["torch_version"]) == ("0.1.0", "2.13.0")


def test_parameters_that_share_or_stride_memory_are_written_as_they_read(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    odd = {"trunk.turned": base.t(), "trunk.part": base[:, 1:], "trunk.none": torch.zeros(0, 2)}
    card = make_card("r", 1, odd, odd, RECIPE, ("0", "0"))
    write_model(tmp_path / "m", ModelFolder(student=odd, teacher=odd, recipe=RECIPE, card=card))
    read = read_model(tmp_path / "m").student
    assert all(torch.equal(read[name], tensor) for name, tensor in odd.items())


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(FILES))
@settings(max_examples=30)
def test_one_flipped_bit_anywhere_is_noticed(written: Path, place: float, bit: int, name: str) -> None:
    path = written / name
    good = path.read_bytes()
    bad = bytearray(good)
    bad[int(place * len(bad))] ^= 1 << bit
    path.write_bytes(bad)
    try:
        changed = _read_or_none(written)
    finally:
        path.write_bytes(good)
    if changed is not None:  # only the card's own words can change unnoticed: nothing is made of them but what is shown
        assert name == "card.json"
        assert update.digest(changed.student) == _model().card.student_digest


def _read_or_none(folder: Path) -> ModelFolder | None:
    try:
        return read_model(folder)
    except CheckpointError:
        return None


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_flipped_bit_in_a_parameter_is_a_digest_error(folder: Path, part: str) -> None:
    path = folder / f"{part}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"{part}\.safetensors in .* has digest \w{{12}}, its card says \w{{12}}"
    ):
        read_model(folder)


def test_changed_recipe_is_a_digest_error(folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(CheckpointError, match=r"recipe\.yaml in .* has digest"):
        read_model(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"no model in .* expected card\.json|cannot be read"):
        read_model(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1}', '{"format": "x"}', '{"format": null}'])
def test_card_that_is_none(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_model(folder)


def test_newer_format_says_to_update(folder: Path) -> None:
    path = folder / "card.json"
    card = json.loads(path.read_text()) | {"format": FORMAT + 1, "a_new_field": 1}
    path.write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}, this panfm reads {FORMAT}; update panfm"):
        read_model(folder)


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CheckpointError, match=r"no model in .*: expected card\.json there; name the folder"):
            read_model(place)


def test_same_model_is_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "again", _model())
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()
