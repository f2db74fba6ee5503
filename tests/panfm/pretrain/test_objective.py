"""Rounds and held-out losses under each objective: every rule of masking, centres that follow their formula, collapse."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from panfm import update
from panfm.config import MaskSchedule, Objective, OrganMaskConfig, OrganMaskRule, Precision, PrototypeConfig, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.models.build import initial_parameters
from panfm.pretrain import local_round
from panfm.pretrain.collapse import collapse_reason
from panfm.pretrain.held_out import held_out_loss
from panfm.pretrain.local_round import TrainedRound, train_round
from panfm.pretrain.objective import objective_loss
from panfm.pretrain.pixel_step import pixel_step
from panfm.pretrain.prototype_step import move_centres, prototype_step
from panfm.pretrain.step import Centres, StepLoss, step_loss

MakeRecipe = Callable[..., Recipe]
MakeDataset = Callable[..., SubjectDataset]
MakeProblem = Callable[..., Any]

RAGGED: dict[str, Sequence[str]] = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart", "liver"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart"],
    "f": ["heart"],
}
CENTRES = tuple(f"heads.prototypes.{which}_centre" for which in ("subject", "patch"))


def _train(recipe: Recipe, dataset: SubjectDataset, rounds: int = 1) -> tuple[dict[str, Tensor], TrainedRound]:
    """Rounds of one site alone; the coordinator hands back what it got, and the teacher with it."""
    student = initial_parameters(recipe.model, recipe.organs, recipe.seed)
    for number in range(1, rounds + 1):
        trained = train_round(student, student, dataset, recipe, site="s", round_number=number)
        student = update.add(student, trained.deltas)
    return student, trained


@pytest.mark.parametrize("rule", list(OrganMaskRule))
@pytest.mark.parametrize("objective", list(Objective))
def test_every_objective_goes_with_every_rule(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, objective: Objective, rule: OrganMaskRule
) -> None:
    organ_mask = OrganMaskConfig(rule=rule, rate=1.0, threshold=0.1, threshold_probability=1.0)
    recipe = make_recipe(organ_mask, objective=objective, steps_per_round=2, batch_size=6)
    _, trained = _train(recipe, make_dataset(RAGGED))
    for name, value in asdict(trained.metrics).items():
        values = value.values() if isinstance(value, dict) else [0.0 if value is None else value]
        assert all(math.isfinite(v) for v in values), name
    assert any(trained.metrics.masked_rate.values()) == (rule is not OrganMaskRule.none)
    assert set(trained.deltas) == set(initial_parameters(recipe.model, recipe.organs, 0))
    head = {Objective.features: "patch_predictor", Objective.prototypes: "prototypes", Objective.pixels: "decoder"}
    # The decoder's bias of keys, as any block's, moves no softmax; everything else of the head does something.
    moved = [n for n, delta in trained.deltas.items() if n.startswith(f"heads.{head[objective]}.") and delta.any()]
    assert len(moved) >= 6


def test_the_recipe_chooses_the_loss(make_problem: MakeProblem, make_recipe: MakeRecipe) -> None:
    def found(objective: Objective) -> tuple[StepLoss, StepLoss]:
        p, config = make_problem(objective, RAGGED), make_recipe(objective=objective).pretrain
        own = {
            Objective.features: lambda: step_loss(p.student, p.seen, p.target, p.masks, config.loss),
            Objective.prototypes: lambda: prototype_step(
                p.student, p.teacher, p.seen, p.target, p.masks, config.prototypes, 0.05
            ),
            Objective.pixels: lambda: pixel_step(p.student, p.given, p.seen, p.target, p.masks, config.pixels),
        }
        with torch.no_grad():
            chosen = objective_loss(p.student, p.teacher, p.given, p.seen, p.target, p.masks, config, 0.05)
            return chosen, own[objective]()

    for objective in Objective:
        chosen, own = found(objective)
        assert torch.equal(chosen.total, own.total)


@pytest.mark.parametrize("keep_moments", [False, True])
def test_a_centre_after_a_round_is_its_formula_whatever_the_optimiser_does(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, keep_moments: bool
) -> None:
    """With FedProx, decay and a clip that bites: c_k = .9^k c_0 + .1 sum of .9^(k - j) x_j, and no moment of it is kept."""
    means: list[Centres] = []

    def noted(student: Any, batch: Centres, momentum: float) -> None:
        means.append(batch)
        move_centres(student, batch, momentum)

    monkeypatch.setattr(local_round, "move_centres", noted)
    recipe = make_recipe(
        objective=Objective.prototypes, proximal=3.0, weight_decay=0.5, clip_norm=0.01, steps_per_round=4
    )
    recipe.pretrain.keep_moments = keep_moments
    start = initial_parameters(recipe.model, recipe.organs, 0)
    start = {name: value + 0.3 if name in CENTRES else value for name, value in start.items()}
    trained = train_round(start, start, make_dataset(RAGGED), recipe, site="s", round_number=1)
    for name, told in zip(CENTRES, ([m.subject for m in means], [m.patch for m in means]), strict=True):
        expected = 0.9**4 * start[name] + sum(0.1 * 0.9 ** (4 - n) * x for n, x in enumerate(told, start=1))
        assert torch.allclose(start[name] + trained.deltas[name], expected, atol=1e-6)
        assert float((told[0] - told[-1]).abs().max()) > 0
    kept = {name for named in trained.moments.values() for name in named}
    assert bool(kept) == keep_moments
    assert not kept & set(CENTRES)


def test_centring_can_be_left_out(make_recipe: MakeRecipe, make_dataset: MakeDataset) -> None:
    recipe = make_recipe(objective=Objective.prototypes)
    recipe.pretrain.prototypes = PrototypeConfig(centre_momentum=1.0)
    _, trained = _train(recipe, make_dataset(RAGGED))
    assert not any(trained.deltas[name].any() for name in CENTRES)


@pytest.mark.parametrize("objective", list(Objective))
def test_a_round_in_parts_whose_activations_are_computed_again_is_the_same_round(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, objective: Objective
) -> None:
    """Activations that are computed again change no bit; parts change sums in their last digits, and no metric of the batch."""

    def found(accumulate: int, checkpointing: bool) -> TrainedRound:
        recipe = make_recipe(
            OrganMaskConfig(rate=0.5), objective=objective, batch_size=6, learning_rate=1e-3, accumulate=accumulate
        )
        recipe.pretrain.checkpointing = checkpointing
        return _train(recipe, dataset)[1]

    dataset = make_dataset(RAGGED)
    plain, again, parts = found(1, False), found(1, True), found(4, True)
    assert update.digest(again.deltas) == update.digest(plain.deltas)
    assert replace(again.metrics, seconds=0.0) == replace(plain.metrics, seconds=0.0)
    assert parts.deltas.keys() == plain.deltas.keys()
    assert update.norm(update.subtract(parts.deltas, plain.deltas)) < 1e-3 * update.norm(plain.deltas)
    told = asdict(replace(parts.metrics, seconds=0.0))
    for name, expected in asdict(replace(plain.metrics, seconds=0.0)).items():
        if expected is None:
            assert told[name] is None
        else:
            assert told[name] == pytest.approx(expected, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("objective", list(Objective))
def test_a_round_in_bf16_is_nearly_that_in_fp32(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, objective: Objective
) -> None:
    """Deltas stay fp32; losses differ by less than 1 %, the round's direction by little, and neither by nothing."""
    dataset, rounds = make_dataset(RAGGED), list[TrainedRound]()
    for precision in Precision:
        recipe = make_recipe(OrganMaskConfig(rule=OrganMaskRule.uniform), objective=objective, batch_size=6)
        recipe.pretrain.precision = precision
        rounds.append(_train(recipe, dataset)[1])
    full, half = rounds
    assert {delta.dtype for delta in half.deltas.values()} == {torch.float32}
    for name in ("loss", "loss_patch", "loss_organ", "collapse_loss"):
        # Pixels have no organ loss.
        told, expected = (getattr(trained.metrics, name) or 0.0 for trained in (half, full))
        assert told == pytest.approx(expected, rel=0.01), name
    cosine = sum(float((half.deltas[n] * full.deltas[n]).sum()) for n in full.deltas)
    cosine /= update.norm(half.deltas) * update.norm(full.deltas)
    assert 0.9 < cosine < 1 - 1e-7


COLLAPSES = {
    "features": (Objective.features, 2, 1.0, PrototypeConfig(), "its features collapsed: spread"),
    "features diverge": (
        Objective.features,
        1,
        1.0,
        PrototypeConfig(),
        "its training diverged: the loss of hidden .* lower",
    ),
    "pixels": (Objective.pixels, 2, 0.3, PrototypeConfig(), "its features collapsed: spread .* mean patch"),
    "pixels diverge": (
        Objective.pixels,
        1,
        10.0,
        PrototypeConfig(),
        "its training diverged: the loss of hidden .* lower",
    ),
    "all alike": (
        Objective.prototypes,
        2,
        1.0,
        PrototypeConfig(centre_momentum=1.0),
        "its (features|prototypes) collapsed: ",
    ),
    "uniform": (
        Objective.prototypes,
        3,
        1e-2,
        PrototypeConfig(teacher_temperature=5.0, final_teacher_temperature=5.0),
        "its prototypes collapsed: .* stands at ln K = 3.4657",
    ),
}
"""Objective, rounds, learning rate, settings of prototypes, and what is said in the end."""


@pytest.mark.parametrize("how", list(COLLAPSES))
def test_a_collapse_that_was_driven_to_is_named(make_recipe: MakeRecipe, make_dataset: MakeDataset, how: str) -> None:
    """Huge steps; prototypes without a centre; prototypes under a teacher so warm that it prefers none."""
    objective, rounds, rate, prototypes, word = COLLAPSES[how]
    recipe = make_recipe(objective=objective, steps_per_round=30, batch_size=12, warmup_steps=3, learning_rate=rate)
    recipe = replace(recipe, rounds=rounds)
    recipe.pretrain.prototypes = prototypes
    twins = {f"{name}{twin}": organs for name, organs in RAGGED.items() for twin in (1, 2)}
    _, trained = _train(recipe, make_dataset(twins), rounds)
    reason = collapse_reason(trained.metrics, objective) or ""
    assert re.match(word, reason), (reason, trained.metrics)


@pytest.mark.parametrize("objective", list(Objective))
def test_no_objective_collapses_with_ordinary_settings(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, objective: Objective
) -> None:
    recipe = make_recipe(objective=objective, steps_per_round=15, batch_size=6)
    assert collapse_reason(_train(recipe, make_dataset(RAGGED))[1].metrics, objective) is None


@pytest.mark.parametrize("objective", list(Objective))
def test_the_held_out_loss_is_that_of_the_objective_and_of_no_round(
    make_recipe: MakeRecipe, make_dataset: MakeDataset, objective: Objective
) -> None:
    """What goes along a schedule stands as at the run's end, so the same model has the same loss in every round."""
    moving = OrganMaskConfig(schedule=MaskSchedule.linear, start_rate=1.0, rate=0.0)
    recipe, dataset = make_recipe(moving, objective=objective), make_dataset(RAGGED)
    student, teacher = (initial_parameters(recipe.model, recipe.organs, seed) for seed in (1, 2))
    told = held_out_loss(student, teacher, dataset, recipe, site="s")
    still = make_recipe(OrganMaskConfig(rate=0.0), objective=objective)
    warm = 2 * still.pretrain.prototypes.teacher_temperature
    still.pretrain.prototypes = PrototypeConfig(teacher_temperature=warm)
    assert held_out_loss(student, teacher, dataset, still, site="s") == told
    if objective is Objective.prototypes:
        assert told.collapse_loss == pytest.approx(math.log(recipe.model.prototypes))
        assert told.loss == pytest.approx(told.loss_patch + (told.loss_organ or 0.0))
    if objective is Objective.pixels:
        assert told.loss == pytest.approx(told.loss_patch)
        assert told.loss_organ is None


def test_organ_masking_goes_along_its_schedule(make_recipe: MakeRecipe, make_dataset: MakeDataset) -> None:
    """From all organs but one to none: the masked rates of two rounds, and not one mask in the last step."""
    moving = OrganMaskConfig(rule=OrganMaskRule.uniform, schedule=MaskSchedule.linear, start_rate=1.0, rate=0.0)
    recipe = make_recipe(moving, steps_per_round=6, batch_size=4)
    dataset = make_dataset({name: ["brain", "heart", "liver"] for name in "abcd"})
    student = initial_parameters(recipe.model, recipe.organs, 0)
    rates = []
    for number in (1, 2):
        metrics = train_round(student, student, dataset, recipe, site="s", round_number=number).metrics
        rates.append(sum(metrics.masked_rate.values()) / 3)
    # Steps 0 .. 5 have rates 1 to 6/11, of which at most two organs in three can go; steps 6 .. 11 have 5/11 to 0.
    assert 0.4 < rates[0] <= 2 / 3
    assert 0.05 < rates[1] < 0.35
