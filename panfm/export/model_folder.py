"""A model on disk: one folder with student and teacher (safetensors), the recipe (YAML) and a card (JSON) with digests.

Checkpoints of a run and the exported model share this form. A folder is written beside its place and renamed into it, so
it is whole or not there; digests are checked whenever it is read. Nothing is ever unpickled.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from panfm import recipes, update
from panfm.config import Recipe
from panfm.durable import write_folder
from panfm.errors import CheckpointError, ConfigError

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a reader of the model must know."""

    run: str
    round: int
    """Rounds that the parameters have seen."""
    organs: list[str]
    panfm_version: str
    torch_version: str
    student_digest: str
    teacher_digest: str
    recipe_digest: str
    """SHA-256 of `recipe.yaml`."""
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """A model as read from disk."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    recipe: Recipe
    card: ModelCard


def write_model(folder: Path, model: ModelFolder) -> None:
    """Write the folder, whole or not at all; an older one of that name is replaced."""
    write_folder(folder, lambda draft: fill_model(draft, model))


def fill_model(draft: Path, model: ModelFolder) -> None:
    """Write the model's files into a folder that is there, for what keeps more beside them."""
    for part, tensors in (("student", model.student), ("teacher", model.teacher)):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft / f"{part}.safetensors")
    (draft / "recipe.yaml").write_text(recipes.to_yaml(model.recipe))
    (draft / "card.json").write_text(json.dumps(asdict(model.card), indent=2, sort_keys=True) + "\n")


def read_model(folder: Path) -> ModelFolder:
    """Read the folder.

    Raises: CheckpointError when it is not a model, is damaged, or was written by a newer panfm.
    """
    if not (folder / "card.json").is_file():
        raise CheckpointError(f"no model in {folder}: expected card.json there; name the folder of an exported model")
    try:
        card = _read_card(folder)
        text = (folder / "recipe.yaml").read_text()
        student, teacher = (load_file(folder / f"{part}.safetensors") for part in ("student", "teacher"))
        _check_digest(folder / "recipe.yaml", _text_digest(text), card.recipe_digest)
        recipe = recipes.recipe_from_yaml(text)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"the model in {folder} cannot be read ({error}); restore it from a copy") from error
    _check_digest(folder / "student.safetensors", update.digest(student), card.student_digest)
    _check_digest(folder / "teacher.safetensors", update.digest(teacher), card.teacher_digest)
    return ModelFolder(student=student, teacher=teacher, recipe=recipe, card=card)


def make_card(
    run: str,
    round_number: int,
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    recipe: Recipe,
    versions: tuple[str, str],
) -> ModelCard:
    """The card of these parameters; versions of panfm and torch."""
    return ModelCard(
        run=run,
        round=round_number,
        organs=list(recipe.organs),
        panfm_version=versions[0],
        torch_version=versions[1],
        student_digest=update.digest(student),
        teacher_digest=update.digest(teacher),
        recipe_digest=_text_digest(recipes.to_yaml(recipe)),
    )


def _read_card(folder: Path) -> ModelCard:
    values = json.loads((folder / "card.json").read_text())
    if values["format"] > FORMAT:
        raise CheckpointError(
            f"the model in {folder} has format {values['format']}, this panfm reads {FORMAT}; update panfm"
        )
    return ModelCard(**values)


def _check_digest(path: Path, got: str, expected: str) -> None:
    if got != expected:
        raise CheckpointError(
            f"{path.name} in {path.parent} has digest {got[:12]}, its card says {expected[:12]}; restore it from a copy"
        )


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
