"""The losses of the subjects are those of the packed step: their mean is its loss, and each is that of the subject alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from panfm.config import LossWeights, ModelConfig, OrganGrid, OrganMaskConfig, OrganMaskRule, PatchMaskConfig, Recipe
from panfm.data.dataset import Batch
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.dense import DenseModel
from panfm.models.pan_organ import PanOrganModel
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.dense_step import dense_batch, dense_teacher_view, draw_dense_masks, subject_losses
from panfm.pretrain.step import draw_masks, patch_counts, step_loss, teacher_view
from panfm.randomness import stream

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., PanOrganModel]
MakeBatch = Callable[..., Batch]

RAGGED: dict[str, Sequence[str]] = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart"],
}


def streams(batch: Batch) -> tuple[list, list]:  # type: ignore[type-arg]  # of generators
    return tuple([stream(5, name, what) for name in batch.subjects] for what in ("organs", "patches"))  # type: ignore[return-value]


@pytest.mark.parametrize("rule", list(OrganMaskRule))
@pytest.mark.parametrize(
    "weights",
    [LossWeights(patch=1.0, seen=0.7, organ=0.3), LossWeights(patch=0, seen=0, organ=1), LossWeights(organ=0)],
)
def test_mean_over_subjects_is_the_loss_of_the_packed_step(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe, rule: OrganMaskRule, weights: LossWeights
) -> None:
    recipe, batch = make_recipe(), make_batch(RAGGED)
    student, teacher, config = make_model(seed=1), make_model(seed=2), OrganMaskConfig(rule=rule, rate=0.5)
    counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in batch.organs}
    target, saliency = teacher_view(teacher, batch, 2)
    masks = draw_masks(batch, saliency, counts, config, PatchMaskConfig(), *streams(batch))

    through, shapes = DenseModel(student), {organ: grid.shape for organ, grid in recipe.organs.items()}
    given = dense_batch(batch, shapes)
    dense_target, dense_saliency = dense_teacher_view(DenseModel(teacher), given, 2)
    dense_masks = draw_dense_masks(through.layout, dense_saliency, counts, config, PatchMaskConfig(), *streams(batch))

    torch.testing.assert_close(dense_saliency.share, saliency.share, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense_saliency.lift, saliency.lift, rtol=1e-5, atol=1e-6)
    assert torch.equal(dense_masks.organs, masks.organs)
    for organ, rows in batch.rows.items():
        span = through.layout.spans[organ]
        assert torch.equal(dense_masks.patches[rows, span.start + 1 : span.stop], masks.patches[organ])

    expected = step_loss(student, batch, target, masks, weights).total
    found = subject_losses(through, given, dense_target, dense_masks, weights)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-5, atol=1e-6)
    own = dict(student.named_parameters())
    slow = torch.autograd.grad(expected, list(own.values()), materialize_grads=True)
    fast = torch.autograd.grad(found.mean(), list(own.values()), materialize_grads=True)
    for name, one, other in zip(own, fast, slow, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_subject_without_organs_loses_nothing(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    recipe, batch = make_recipe(), make_batch({"a": ["brain"], "nobody": []})
    through, config = DenseModel(make_model(seed=1)), OrganMaskConfig()
    given = dense_batch(batch, {organ: grid.shape for organ, grid in recipe.organs.items()})
    target, saliency = dense_teacher_view(DenseModel(make_model(seed=2)), given, 2)
    counts = {organ: patch_counts(grid, recipe.model.patch) for organ, grid in recipe.organs.items()}
    masks = draw_dense_masks(through.layout, saliency, counts, config, PatchMaskConfig(), *streams(batch))
    losses = subject_losses(through, given, target, masks, LossWeights())
    assert float(losses[0].detach()) > 0
    assert float(losses[1].detach()) == 0.0
    assert saliency.share[1].tolist() == [0.0, 0.0, 0.0]


def test_seven_organs_half_of_them_missing_packed_is_dense_to_1e_5() -> None:
    """What `benchmarks/step.py` holds against each other in time: loss, and gradients as a part of the whole gradient's norm."""
    grids = {organ: OrganGrid(shape=[12, 8, 8]) for organ in SEVEN_ORGANS}
    config = ModelConfig(width=48, depth=3, heads=4, adapter_width=8, predictor_width=48, patch=4)
    noise = torch.Generator().manual_seed(0)
    student, teacher = (build_model(config, grids) for _ in range(2))
    for model in (student, teacher):
        start = initial_parameters(config, grids, 0)
        load_parameters(model, {n: p + 0.05 * torch.randn(p.shape, generator=noise) for n, p in start.items()})
    held = {organ: [row for row in range(6) if (row + place) % 2] for place, organ in enumerate(SEVEN_ORGANS)}
    volumes = {organ: torch.randn(len(rows), 12, 8, 8, generator=noise) for organ, rows in held.items()}
    rows = {organ: torch.tensor(own) for organ, own in held.items()}
    batch = Batch(tuple("abcdef"), SEVEN_ORGANS, rows, volumes)
    counts, rule = dict.fromkeys(SEVEN_ORGANS, (3, 2, 2)), OrganMaskConfig(rate=0.5)

    target, saliency = teacher_view(teacher, batch, 2)
    masks = draw_masks(batch, saliency, counts, rule, PatchMaskConfig(), *streams(batch))
    packed = step_loss(student, batch, target, masks, LossWeights()).total
    through, given = DenseModel(student), dense_batch(batch, dict.fromkeys(SEVEN_ORGANS, (12, 8, 8)))
    dense_target, dense_saliency = dense_teacher_view(DenseModel(teacher), given, 2)
    dense_masks = draw_dense_masks(through.layout, dense_saliency, counts, rule, PatchMaskConfig(), *streams(batch))
    dense = subject_losses(through, given, dense_target, dense_masks, LossWeights()).mean()

    assert abs(float((packed - dense).detach())) < 1e-5
    own = list(student.parameters())
    found, expected = (torch.autograd.grad(loss, own, materialize_grads=True) for loss in (packed, dense))
    largest = torch.stack([gradient.norm() for gradient in expected]).norm()
    worst = max(float((one - other).abs().max() / largest) for one, other in zip(found, expected, strict=True))
    assert 0 < worst < 1e-5
