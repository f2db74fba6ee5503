"""A step's loss equals a sum over subjects, organs, patches and features by loops, and no subject enters another's gradient."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import LossWeights, OrganMaskConfig, OrganMaskRule, PatchMaskConfig, Recipe
from panfm.data.dataset import Batch
from panfm.errors import ConfigError
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import Features, PanOrganModel
from panfm.pretrain.patch_mask import num_hidden
from panfm.pretrain.saliency import saliency_of
from panfm.pretrain.step import Masks, draw_masks, patch_counts, step_loss, teacher_view
from panfm.randomness import stream

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., PanOrganModel]
MakeBatch = Callable[..., Batch]
Presence = dict[str, Sequence[str]]

RAGGED: Presence = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart"],
}
WEIGHTS = LossWeights(patch=1.0, seen=0.7, organ=0.3)
HALF = OrganMaskConfig(rate=0.5)


def _masks(
    batch: Batch, teacher: PanOrganModel, recipe: Recipe, config: OrganMaskConfig = HALF
) -> tuple[Features, Masks]:
    """The teacher's features and masks drawn from streams keyed by the subject's name."""
    target, saliency = teacher_view(teacher, batch, 2)
    counts = {organ: patch_counts(recipe.organs[organ], recipe.model.patch) for organ in batch.rows}
    organs, patches = ([stream(5, name, purpose) for name in batch.subjects] for purpose in ("organs", "patches"))
    return target, draw_masks(batch, saliency, counts, config, PatchMaskConfig(), organs, patches)


def _only(batch: Batch, target: Features, masks: Masks, row: int) -> tuple[Batch, Features, Masks]:
    """One subject of a batch, with its own targets and masks, as a batch of one."""
    places = {o: rows.tolist().index(row) for o, rows in batch.rows.items() if row in rows.tolist()}

    def own(by_organ: dict[str, Tensor]) -> dict[str, Tensor]:
        return {organ: by_organ[organ][place : place + 1] for organ, place in places.items()}

    alone = Batch(
        (batch.subjects[row],), batch.organs, {organ: torch.tensor([0]) for organ in places}, own(batch.volumes)
    )
    features = Features(
        subject=target.subject[row : row + 1], organ=own(target.organ), patches=own(target.patches), attention={}
    )
    return alone, features, Masks(organs=masks.organs[row : row + 1], patches=own(masks.patches))


def _smooth_l1(predicted: Tensor, wanted: Tensor) -> float:
    """Token against LayerNorm-ed target, feature by feature."""
    mean, deviation = wanted.mean(), (wanted.var(unbiased=False) + 1e-5).sqrt()
    away = (predicted - (wanted - mean) / deviation).abs().tolist()
    return float(sum(d * d / 2 if d < 1 else d - 0.5 for d in away) / len(away))


def _slow_terms(
    student: PanOrganModel, alone: Batch, target: Features, masks: Masks
) -> tuple[float, float, float | None]:
    """Term (a) over hidden and over seen patches, and term (b), of one subject; (b) is None where it has a single organ."""
    hidden = {organ for organ in alone.rows if masks.organs[0, alone.organs.index(organ)]}
    seen = [organ for organ in alone.rows if organ not in hidden]
    features = student(
        {organ: alone.volumes[organ] for organ in seen},
        {organ: alone.rows[organ] for organ in seen},
        1,
        {organ: masks.patches[organ] for organ in seen},
    )
    by_organ: dict[bool, list[float]] = {True: [], False: []}
    for organ, gone in itertools.product(seen, (True, False)):
        patches = [t for t, is_hidden in enumerate(masks.patches[organ][0].tolist()) if is_hidden == gone]
        predicted = [student.heads.patch_predictor(features.patches[organ][0, t]) for t in patches]
        losses = [_smooth_l1(p, target.patches[organ][0, t]) for p, t in zip(predicted, patches, strict=True)]
        by_organ[gone].append(sum(losses) / len(losses))
    a_hidden, a_seen = (sum(by_organ[gone]) / len(seen) for gone in (True, False))
    if len(alone.rows) < 2:
        return a_hidden, a_seen, None
    asked = sorted(hidden) if hidden else seen
    guesses = {o: student.heads.organ_predictor(features.subject[0] + student.group(o).query) for o in asked}
    term_b = sum(_smooth_l1(guesses[organ], target.organ[organ][0]) for organ in asked) / len(asked)
    return a_hidden, a_seen, term_b


@pytest.mark.parametrize("rule", [OrganMaskRule.lift, OrganMaskRule.none])
def test_loss_by_loops(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe, rule: OrganMaskRule
) -> None:
    student, teacher, batch = make_model(seed=1), make_model(seed=2), make_batch(RAGGED)
    target, masks = _masks(batch, teacher, make_recipe(), OrganMaskConfig(rule=rule, rate=0.5))
    assert bool(masks.organs.any()) == (rule is OrganMaskRule.lift)
    with torch.no_grad():
        found = step_loss(student, batch, target, masks, WEIGHTS)
        terms = [_slow_terms(student, *_only(batch, target, masks, row)) for row in range(len(RAGGED))]
        alone = step_loss(student, batch, target, masks, LossWeights(patch=0.0, seen=1.0, organ=0.0))
    patch = sum(hidden for hidden, _, _ in terms) / len(terms)
    seen = sum(seen for _, seen, _ in terms) / len(terms)
    organ = [b for _, _, b in terms if b is not None]
    assert len(organ) == 3
    assert float(found.patch) == pytest.approx(patch, abs=1e-5)
    assert found.organ is not None
    assert float(found.organ) == pytest.approx(sum(organ) / len(organ), abs=1e-5)
    # Term (b) is divided by all subjects of the batch, so that nobody's part of the gradient depends on the others' organs.
    assert float(found.total) == pytest.approx(patch + 0.7 * seen + 0.3 * sum(organ) / len(terms), abs=1e-5)
    assert float(alone.total) == pytest.approx(seen, abs=1e-5)
    assert abs(seen - patch) > 1e-3


def _seen_losses(student: PanOrganModel, batch: Batch, target: Features, masks: Masks) -> dict[tuple[int, str], Tensor]:
    """(row, organ) -> losses of the patches that the student saw; nothing of an organ that it did not get."""
    found = {}
    for row in range(len(batch.subjects)):
        alone, wanted, own = _only(batch, target, masks, row)
        shown = [organ for organ in alone.rows if not own.organs[0, batch.organs.index(organ)]]
        volumes, rows = ({organ: values[organ] for organ in shown} for values in (alone.volumes, alone.rows))
        features = student(volumes, rows, 1, {organ: own.patches[organ] for organ in shown})
        for organ in shown:
            points = student.heads.patch_predictor(features.patches[organ][0])
            pairs = zip(points, wanted.patches[organ][0], strict=True)
            losses = torch.tensor([_smooth_l1(guess, right) for guess, right in pairs])
            found[row, organ] = losses[~own.patches[organ][0]]
    return found


def test_every_scan_every_organ_and_every_subject_counts_the_same_in_the_seen_part(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    """A scan's patches are averaged, then a subject's organs, then subjects: a large organ or a full subject weighs no more."""
    student, batch = make_model(seed=1), make_batch(RAGGED)
    target, masks = _masks(batch, make_model(seed=2), make_recipe(), OrganMaskConfig(rule=OrganMaskRule.none))
    with torch.no_grad():
        found = float(step_loss(student, batch, target, masks, LossWeights(patch=0.0, seen=1.0, organ=0.0)).total)
        losses = _seen_losses(student, batch, target, masks)
    assert {organ: len(values) for (_, organ), values in losses.items()} == {"brain": 3, "heart": 2, "liver": 1}
    scans = {key: float(values.mean()) for key, values in losses.items()}
    subjects = [np.mean([mean for (row, _), mean in scans.items() if row == own]) for own in range(len(RAGGED))]
    assert found == pytest.approx(float(np.mean(subjects)), abs=1e-5)
    # Means over all scans or over all patches at once are other numbers.
    assert abs(found - np.mean(list(scans.values()))) > 1e-3
    assert abs(found - float(torch.cat(list(losses.values())).mean())) > 1e-3


def test_without_the_seen_part_the_total_is_that_of_hidden_patches_and_organs(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    """To the bit; and no gradient comes from the prediction of a patch that the student saw."""
    student, batch = make_model(seed=1), make_batch({name: ["brain", "heart", "liver"] for name in "abcd"})
    target, masks = _masks(batch, make_model(seed=2), make_recipe())
    predictions: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        predictions.append(output)

    hook = student.heads.patch_predictor.register_forward_hook(keep)
    found = step_loss(student, batch, target, masks, LossWeights(patch=1.0, seen=0.0, organ=0.3))
    hook.remove()
    assert found.organ is not None
    assert torch.equal(found.total.detach(), found.patch + 0.3 * found.organ)
    torch.autograd.backward(found.total)
    visible = {o: ~masks.organs[rows, batch.organs.index(o)] for o, rows in batch.rows.items()}
    hidden = [masks.patches[organ][shown] for organ, shown in visible.items() if shown.any()]
    for prediction, gone in zip(predictions, hidden, strict=True):
        assert prediction.grad is not None
        assert torch.equal(prediction.grad.any(-1), gone)


def test_a_student_that_equals_its_teacher_and_sees_what_it_sees_has_nothing_to_learn(
    make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    """Fresh predictors hand on: the loss is zero where the teacher's patches are hidden too, and not where they are not."""
    recipe, batch = make_recipe(), make_batch(RAGGED)
    model = build_model(recipe.model, recipe.organs)
    load_parameters(model, initial_parameters(recipe.model, recipe.organs, 0))
    target, masks = _masks(batch, model, recipe, OrganMaskConfig(rule=OrganMaskRule.none))
    weights = LossWeights(patch=1.0, seen=1.0, organ=0.0)
    with torch.no_grad():
        same_view = model(batch.volumes, batch.rows, len(RAGGED), masks.patches)
        assert float(step_loss(model, batch, same_view, masks, weights).total) < 1e-9
        assert float(step_loss(model, batch, target, masks, weights).total) > 1e-2


@pytest.mark.parametrize("seen", [-0.1, float("nan")])
def test_a_weight_below_zero_is_refused_by_name(seen: float) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.loss\.seen must be 0 or more"):
        LossWeights(seen=seen)


def test_the_seen_part_may_stand_alone_but_something_must_be_learned() -> None:
    LossWeights(patch=0.0, seen=0.1, organ=0.0)
    with pytest.raises(ConfigError, match="at least one term"):
        LossWeights(patch=0.0, seen=0.0, organ=0.0)


def test_collapse_value_is_term_a_of_the_organs_mean_targets(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    student, teacher, batch = make_model(seed=1), make_model(seed=2), make_batch(RAGGED)
    target, masks = _masks(batch, teacher, make_recipe())
    with torch.no_grad():
        found = step_loss(student, batch, target, masks, WEIGHTS).collapse
    of_subject: dict[int, list[float]] = {}
    for organ, rows in batch.rows.items():
        shown = [place for place, row in enumerate(rows) if not masks.organs[row, batch.organs.index(organ)]]
        points = torch.nn.functional.layer_norm(target.patches[organ], (24,))
        wanted = [points[place][masks.patches[organ][place]] for place in shown]
        guess = torch.cat(wanted).mean(0) if wanted else torch.zeros(24)
        for place, own in zip(shown, wanted, strict=True):
            away = (own - guess).abs()
            of_subject.setdefault(int(rows[place]), []).append(
                float(torch.where(away < 1, away.square() / 2, away - 0.5).mean())
            )
    expected = sum(sum(losses) / len(losses) for losses in of_subject.values()) / len(RAGGED)
    assert found == pytest.approx(expected, rel=1e-5)


def _gradients(student: PanOrganModel, *problem: object, weights: LossWeights = WEIGHTS) -> dict[str, Tensor]:
    batch, target, masks = problem
    assert isinstance(batch, Batch)
    assert isinstance(target, Features)
    assert isinstance(masks, Masks)
    student.zero_grad(set_to_none=True)
    torch.autograd.backward(step_loss(student, batch, target, masks, weights).total)
    return {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in student.named_parameters()}


subjects = st.lists(
    st.lists(st.sampled_from(["brain", "heart", "liver"]), min_size=1, unique=True), min_size=2, max_size=5
)


@settings(max_examples=8)
@given(organs=subjects)
def test_a_batchs_gradient_is_the_mean_of_its_subjects_gradients(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe, organs: list[list[str]]
) -> None:
    """Each subject's part is what it would be alone: the same whatever organs, masks or loss the others have."""
    student, batch = make_model(seed=1), make_batch({f"s{n}": own for n, own in enumerate(organs)})
    target, masks = _masks(batch, make_model(seed=2), make_recipe())
    together = _gradients(student, batch, target, masks)
    alone = [_gradients(student, *_only(batch, target, masks, row)) for row in range(len(organs))]
    for name, gradient in together.items():
        expected = torch.stack([part[name] for part in alone]).mean(0)
        assert torch.allclose(gradient, expected, atol=1e-5 * max(1.0, float(expected.abs().max()))), name


def test_another_subjects_organs_change_nothing_for_me(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    """The gradient at subject a's own voxels, beside a neighbour with one, two or three organs."""
    found = []
    for neighbour in (["liver"], ["brain", "heart"], ["brain", "heart", "liver"]):
        batch = make_batch({"a": ["brain", "heart"], "b": neighbour})
        target, masks = _masks(batch, make_model(seed=2), make_recipe())
        for volumes in batch.volumes.values():
            volumes.requires_grad_()
        torch.autograd.backward(step_loss(make_model(seed=1), batch, target, masks, WEIGHTS).total)
        voxels = batch.volumes["brain" if not masks.organs[0, 0] else "heart"]
        assert voxels.grad is not None
        found.append(voxels.grad[0])
    assert float(found[0].abs().max()) > 0
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[0], found[2], atol=1e-6)


def _query_gradient_at_subject_tokens(
    student: PanOrganModel, batch: Batch, target: Features, masks: Masks, weights: LossWeights
) -> Tensor:
    """Gradient at the last block's query projection of the subject tokens, [B, E]: what moves their attention row."""
    projected: list[Tensor] = []

    def keep(module: object, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        projected.append(output)

    last = list(student.trunk.blocks)[-1].get_submodule("attention.qkv")
    hook = last.register_forward_hook(keep)
    torch.autograd.backward(step_loss(student, batch, target, masks, weights).total)
    hook.remove()
    assert projected[0].grad is not None
    return projected[0].grad[: len(batch.subjects), : student.config.width]


@pytest.mark.parametrize("rule", [OrganMaskRule.lift, OrganMaskRule.none])
def test_term_b_trains_the_last_blocks_subject_token_attention(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe, rule: OrganMaskRule
) -> None:
    """Without it the row that SGM reads is noise: no other term reaches the subject token after the last block."""
    everybody = {name: ["brain", "heart", "liver"] for name in "abc"} | {"d": ["brain"]}
    batch = make_batch(everybody)
    target, masks = _masks(batch, make_model(seed=2), make_recipe(), OrganMaskConfig(rule=rule, rate=1.0))
    with_b = _query_gradient_at_subject_tokens(make_model(seed=1), batch, target, masks, LossWeights())
    assert float(with_b[:3].abs().amax(1).min()) > 1e-6
    assert not with_b[3].any()  # a single organ: nothing to be predicted from others
    without = _query_gradient_at_subject_tokens(make_model(seed=1), batch, target, masks, LossWeights(organ=0.0))
    assert not without.any()


def test_every_parameter_is_trained_and_a_term_without_weight_trains_nothing(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    student, batch = make_model(seed=1), make_batch(RAGGED)
    problem = batch, *_masks(batch, make_model(seed=2), make_recipe())
    both = _gradients(student, *problem)
    assert [name for name, gradient in both.items() if not gradient.any()] == []
    step_loss_without = LossWeights(organ=0.0)
    _gradients(student, *problem, weights=step_loss_without)
    untouched = {name for name, parameter in student.named_parameters() if parameter.grad is None}
    expected = {name for name in both if name.startswith("heads.organ_predictor") or name.endswith(".query")}
    assert untouched == expected


def test_subjects_with_one_organ_have_no_term_b(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    batch = make_batch({"a": ["brain"], "b": ["heart"]})
    target, masks = _masks(batch, make_model(seed=2), make_recipe(), OrganMaskConfig(rate=1.0))
    assert not masks.organs.any()
    student = make_model(seed=1)
    found = step_loss(student, batch, target, masks, LossWeights(seen=0.0, organ=0.3))
    assert found.organ is None
    assert float(found.total.detach()) == float(found.patch)
    torch.autograd.backward(found.total)
    assert [p.grad for p in student.heads.organ_predictor.parameters()] == [None] * 6


def test_the_student_does_not_see_masked_organs_or_hidden_patches(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    batch = make_batch(RAGGED)
    target, masks = _masks(batch, make_model(seed=2), make_recipe())
    for volumes in batch.volumes.values():
        volumes.requires_grad_()
    torch.autograd.backward(step_loss(make_model(seed=1), batch, target, masks, WEIGHTS).total)
    for organ, rows in batch.rows.items():
        gradient = batch.volumes[organ].grad
        assert gradient is not None
        for place, row in enumerate(rows.tolist()):
            shape = patch_counts(make_recipe().organs[organ], 4)
            hidden = masks.patches[organ][place].reshape(shape)
            for axis in range(3):
                hidden = hidden.repeat_interleave(4, dim=axis)
            masked = bool(masks.organs[row, batch.organs.index(organ)])
            assert not gradient[place][hidden].any()
            assert bool(gradient[place][~hidden].any()) == (not masked)


def test_the_teacher_sees_everything_and_gets_no_gradient(make_model: MakeModel, make_batch: MakeBatch) -> None:
    teacher, batch = make_model(seed=2), make_batch(RAGGED)
    target, saliency = teacher_view(teacher, batch, 1)
    expected = teacher(batch.volumes, batch.rows, len(RAGGED), saliency_blocks=1)
    assert torch.equal(target.subject, expected.subject)
    assert not target.subject.requires_grad
    by_hand = saliency_of(
        expected.attention, batch.rows, {"brain": 9, "heart": 5, "liver": 3}, batch.organs, len(RAGGED)
    )
    assert torch.equal(saliency.share, by_hand.share)
    assert torch.equal(saliency.lift, by_hand.lift)
    assert torch.equal(saliency.presence, batch.presence)
    assert torch.allclose(saliency.share.sum(1), torch.ones(len(RAGGED)))


def test_a_subjects_masks_depend_on_no_other_and_patches_not_on_organs(
    make_model: MakeModel, make_batch: MakeBatch, make_recipe: MakeRecipe
) -> None:
    teacher, recipe = make_model(seed=2), make_recipe()
    batch = make_batch(RAGGED)
    _, masks = _masks(batch, teacher, recipe)
    _, without = _masks(batch, teacher, recipe, OrganMaskConfig(rule=OrganMaskRule.none))
    assert masks.patches.keys() == batch.rows.keys()
    for organ in masks.patches:
        assert torch.equal(masks.patches[organ], without.patches[organ])
        hidden = num_hidden(masks.patches[organ].shape[1], PatchMaskConfig().rate)
        assert masks.patches[organ].sum(1).tolist() == [hidden] * batch.rows[organ].numel()
    for row, (name, own) in enumerate(RAGGED.items()):
        _, alone = _masks(make_batch({name: own}), teacher, recipe)
        assert torch.equal(alone.organs[0], masks.organs[row])
        for organ in own:
            place = batch.rows[organ].tolist().index(row)
            assert torch.equal(alone.patches[organ][0], masks.patches[organ][place])
