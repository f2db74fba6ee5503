"""Which parameters are trained with privacy, what is refused at the start, and what a step and a round leave behind."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from panfm.config import LossWeights, PrivacyConfig, PrivacyMode, Recipe, Sampler, Spacing
from panfm.data.dataset import Batch, DroppedScan, SubjectDataset
from panfm.errors import ConfigError, RunError
from panfm.models.build import initial_parameters
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain import private_round
from panfm.pretrain.private_round import train_private_round
from panfm.pretrain.private_scope import trained_names
from panfm.pretrain.private_step import PrivateTraining, Views
from panfm.pretrain.step import draw_masks, patch_counts, step_loss, teacher_view
from panfm.randomness import stream

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., PanOrganModel]
MakeBatch = Callable[..., Batch]
MakeDataset = Callable[..., SubjectDataset]

ORGANS = ("brain", "heart", "liver")
RAGGED = {"a": ORGANS, "b": ("heart",), "c": ("brain", "liver"), "d": ("brain",)}


def parameters_of(model: PanOrganModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def begin(recipe: Recipe, model: PanOrganModel, mode: PrivacyMode = PrivacyMode.dp_full) -> PrivateTraining:
    own = parameters_of(model)
    return PrivateTraining(own, own, ORGANS, recipe, PrivacyConfig(mode=mode))


def views_of(batch: Batch, seed: int = 5) -> Views:
    organs, patches = ([stream(seed, name, what) for name in batch.subjects] for what in ("organs", "patches"))
    return Views(given=batch, seen=batch, organ_draws=organs, patch_draws=patches)


def test_rows_are_the_packed_gradients_of_each_subject_alone(
    make_recipe: MakeRecipe, make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """The oracle is the step of training without privacy, on a batch of one subject after the other."""
    recipe, model = make_recipe(), make_model()
    rows = begin(recipe, model).rows([views_of(make_batch(RAGGED))])
    counts = {organ: patch_counts(grid, recipe.model.patch) for organ, grid in recipe.organs.items()}
    own, pretrain = dict(model.named_parameters()), recipe.pretrain
    for row, (name, held) in enumerate(RAGGED.items()):
        alone = make_batch({name: held})
        views, (target, saliency) = views_of(alone), teacher_view(model, alone, pretrain.organ_mask.saliency_blocks)
        masks = draw_masks(
            alone, saliency, counts, pretrain.organ_mask, pretrain.patch_mask, views.organ_draws, views.patch_draws
        )
        loss = step_loss(model, alone, target, masks, pretrain.loss).total
        slow = torch.autograd.grad(loss, list(own.values()), materialize_grads=True)
        for parameter, expected in zip(own, slow, strict=True):
            torch.testing.assert_close(rows[parameter][row], expected, rtol=1e-4, atol=1e-5)


def test_modes_train_what_they_say(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    names = list(initial_parameters(recipe.model, recipe.organs, 0))
    assert trained_names(names, PrivacyMode.dp_full, recipe, ORGANS) == sorted(names)
    adapted = trained_names(names, PrivacyMode.dp_adapters, recipe, ORGANS)
    assert {name.split(".")[0] for name in adapted} == {"heads", "organs"}
    assert all(".adapters." in name or "_predictor." in name for name in adapted)
    assert len(adapted) == 3 * recipe.model.depth * 6 + 2 * 6


@pytest.mark.parametrize(
    ("weights", "organs", "idle"),
    [
        (LossWeights(organ=0), ORGANS, ("organ_predictor", ".query")),
        (LossWeights(), ("brain",), ("organ_predictor", ".query")),
        (LossWeights(patch=0, seen=0), ORGANS, ("patch_predictor",)),
    ],
)
def test_what_no_subject_could_move_is_not_trained(
    make_recipe: MakeRecipe, weights: LossWeights, organs: tuple[str, ...], idle: tuple[str, ...]
) -> None:
    recipe = make_recipe(loss=weights)
    grids = {organ: recipe.organs[organ] for organ in organs}
    names = set(initial_parameters(recipe.model, grids, 0))
    found = set(trained_names(names, PrivacyMode.dp_full, recipe, organs))
    assert names - found == {name for name in names if any(word in name for word in idle)}
    own = initial_parameters(recipe.model, grids, 0)
    training = PrivateTraining(own, own, organs, recipe, PrivacyConfig(mode=PrivacyMode.dp_full))
    assert set(training.release([])) == found


def _native(recipe: Recipe) -> None:
    recipe.organs["heart"].spacing = Spacing.native


def _balanced(recipe: Recipe) -> None:
    recipe.pretrain.sampler = Sampler.balanced


@pytest.mark.parametrize(
    ("change", "word"), [(_native, "heart.spacing=native"), (_balanced, "sampler=balanced draws subjects")]
)
def test_recipes_that_cannot_be_had_are_refused(
    make_recipe: MakeRecipe, make_model: MakeModel, change: Callable[[Recipe], None], word: str
) -> None:
    recipe = make_recipe()
    change(recipe)
    with pytest.raises(ConfigError, match=word):
        begin(recipe, make_model())


def test_mode_none_is_no_training_with_privacy(make_recipe: MakeRecipe, make_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.mode is none"):
        begin(make_recipe(), make_model(), PrivacyMode.none)


def test_step_follows_the_release_alone(make_recipe: MakeRecipe, make_model: MakeModel) -> None:
    recipe, model = make_recipe(teacher_momentum=0.5), make_model()
    before = parameters_of(model)
    training = begin(recipe, model, PrivacyMode.dp_adapters)
    training.finish({name: torch.ones_like(p) for name, p in training.trained.items()}, run_step=5)
    student, teacher = parameters_of(training.student), parameters_of(training.teacher.model)
    for name, start in before.items():
        assert torch.equal(student[name], start) == (name not in training.trained)
        assert torch.equal(teacher[name], start) == (name not in training.trained)
    assert all(parameter.grad is None for parameter in training.student.parameters())


def test_parameters_that_are_no_numbers_stop_the_round(make_recipe: MakeRecipe, make_model: MakeModel) -> None:
    training = begin(make_recipe(), make_model())
    endless = {name: torch.full_like(p, torch.inf) for name, p in training.trained.items()}
    with pytest.raises(RunError, match="diverged"):
        training.finish(endless, 0)


@pytest.mark.parametrize("mode", [PrivacyMode.dp_full, PrivacyMode.dp_adapters])
def test_round_moves_every_trained_parameter_whoever_was_sampled(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, mode: PrivacyMode
) -> None:
    """Nobody has a liver here, which the site declares; two rounds of one task differ, and nothing else is told."""
    recipe = make_recipe(batch_size=2)
    dataset = make_dataset({"a": ["brain"], "b": ["brain", "heart"], "c": ["heart"]})
    own = initial_parameters(recipe.model, recipe.organs, 0)
    privacy = PrivacyConfig(mode=mode, sampling_rate=0.5, denominator=2.0)
    rounds = [train_private_round(own, own, dataset, recipe, privacy, round_number=1) for _ in range(2)]
    for found in rounds:
        assert sorted(found.deltas) == trained_names(own, mode, recipe, ORGANS)
        assert all(bool((delta != 0).any()) for delta in found.deltas.values())
        assert found.num_steps == recipe.pretrain.steps_per_round
    assert all(not torch.equal(delta, rounds[1].deltas[name]) for name, delta in rounds[0].deltas.items())


def test_empty_samples_take_their_steps(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Mapping[str, Tensor]] = []
    finish = PrivateTraining.finish
    monkeypatch.setattr(private_round, "poisson_sample", lambda *_: np.array([], dtype=np.int64))

    def watched(self: PrivateTraining, released: Mapping[str, Tensor], run_step: int) -> None:
        taken.append(released)
        finish(self, released, run_step)

    monkeypatch.setattr(PrivateTraining, "finish", watched)
    recipe = make_recipe()
    own = initial_parameters(recipe.model, recipe.organs, 0)
    privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters)
    train_private_round(own, own, make_dataset({"a": ["brain"]}), recipe, privacy, round_number=1)
    assert len(taken) == recipe.pretrain.steps_per_round
    assert all(bool((tensor != 0).all()) for released in taken for tensor in released.values())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[Views]]:
    """The views of each physical batch of rounds in which everybody is sampled."""
    found: list[Sequence[Views]] = []
    rows = PrivateTraining.rows

    def watched(self: PrivateTraining, views: Sequence[Views]) -> dict[str, Tensor]:
        found.append(views)
        return rows(self, views)

    monkeypatch.setattr(PrivateTraining, "rows", watched)
    monkeypatch.setattr(private_round, "poisson_sample", lambda size, _: np.arange(size))
    return found


def test_a_subject_is_seen_as_often_as_the_recipe_says(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, seen: list[Sequence[Views]]
) -> None:
    recipe = make_recipe(batch_size=2, steps_per_round=1)
    own = initial_parameters(recipe.model, recipe.organs, 0)
    dataset = make_dataset({"a": ["brain"], "b": ["brain", "heart"], "c": ["heart"]})
    privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters, views=3)
    train_private_round(own, own, dataset, recipe, privacy, round_number=1)
    assert [[view.given.subjects for view in views] for views in seen] == [[("a", "b")] * 3, [("c",)] * 3]
    first, second, third = (view.given.volumes["brain"] for view in seen[0])
    assert not torch.equal(first, second) or not torch.equal(second, third), "crops are drawn anew"
    assert len({view.patch_draws[0].integers(2**62) for view in seen[0]}) == 3, "and so are masks"


def test_who_is_lost_between_two_views_is_in_none(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, seen: list[Sequence[Views]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(batch_size=2, steps_per_round=1)
    own = initial_parameters(recipe.model, recipe.organs, 0)
    dataset, calls = make_dataset({"a": ["brain"], "b": ["heart"]}), 0
    batch = dataset.batch

    def losing(*arguments: Any) -> Batch:
        nonlocal calls
        calls += 1
        if calls == 2:
            gone = DroppedScan(subject="b", visit="", organ="heart", reason="it has changed since it was prepared")
            dataset._dropped["heart/b.npy"] = gone
        return batch(*arguments)

    monkeypatch.setattr(dataset, "batch", losing)
    privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters, views=2)
    train_private_round(own, own, dataset, recipe, privacy, round_number=1)
    assert [[view.given.subjects for view in views] for views in seen] == [[("a",)] * 2]
    assert calls == 4
