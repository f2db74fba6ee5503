"""A step in parts is the step: the same loss and gradients, whatever organs the subjects of a part have."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from panfm.config import Objective, PretrainConfig, Recipe
from panfm.data.native_batch import NativeBlock, NativeVolumes
from panfm.pretrain.accumulation import Part, loss_of_parts, parts_of
from panfm.pretrain.objective import constant_guesses, objective_loss
from panfm.pretrain.step import StepLoss

MakeRecipe = Callable[..., Recipe]
MakeProblem = Callable[..., Any]

RAGGED: dict[str, Sequence[str]] = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart", "liver"],
}


def _whole(problem: Any) -> Part:
    return Part(share=1.0, given=problem.given, seen=problem.seen, target=problem.target, masks=problem.masks)


def _config(make_recipe: MakeRecipe, objective: Objective) -> PretrainConfig:
    """With every term that parts can have."""
    config = make_recipe(objective=objective).pretrain
    config.prototypes.organ = config.pixels.organ = 0.4
    return config


def _step(problem: Any, config: PretrainConfig, number: int) -> tuple[StepLoss, dict[str, Tensor]]:
    """Loss and gradients in that many parts."""
    whole, student = _whole(problem), problem.student
    student.zero_grad(set_to_none=True)
    parts, losses = parts_of(whole, number), []
    guesses = constant_guesses(whole.given, whole.target, whole.masks, config.objective, student.config.patch)
    for part in parts:
        loss = objective_loss(
            student, problem.teacher, part.given, part.seen, part.target, part.masks, config, 0.05, guesses
        )
        torch.autograd.backward(part.share * loss.total)
        losses.append(loss)
    gradients = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    return loss_of_parts(losses, [part.share for part in parts]), gradients


@pytest.mark.parametrize("objective", list(Objective))
def test_loss_and_gradients_of_parts_are_those_of_the_whole(
    make_problem: MakeProblem, make_recipe: MakeRecipe, objective: Objective
) -> None:
    """The whole without a word of guesses, as a step in one part has it; parts of one subject, of two and of three."""
    problem, config = make_problem(objective, RAGGED), _config(make_recipe, objective)
    p = problem
    p.student.zero_grad(set_to_none=True)
    expected = objective_loss(p.student, p.teacher, p.given, p.seen, p.target, p.masks, config, 0.05)
    torch.autograd.backward(expected.total)
    slow = {name: q.grad.clone() for name, q in p.student.named_parameters() if q.grad is not None}
    for number in (1, 2, 3, 5, 9):
        found, gradients = _step(problem, config, number)
        assert gradients.keys() == slow.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, slow[name], rtol=1e-5, atol=1e-6, msg=name)
        for name in ("total", "patch", "organ"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)
        assert found.collapse == pytest.approx(expected.collapse, abs=1e-6)
        assert found.organ_subjects == expected.organ_subjects
        assert (found.centres is None) == (expected.centres is None)
        if found.centres is not None and expected.centres is not None:
            torch.testing.assert_close(found.centres.subject, expected.centres.subject, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.centres.patch, expected.centres.patch, rtol=1e-5, atol=1e-6)


def test_a_mean_of_part_means_would_be_another_loss(make_problem: MakeProblem, make_recipe: MakeRecipe) -> None:
    """Five subjects in two parts are two and three: parts that counted alike would fail the test above by far."""
    problem, config = make_problem(Objective.features, RAGGED), _config(make_recipe, Objective.features)
    parts = parts_of(_whole(problem), 2)
    assert [part.share for part in parts] == [0.4, 0.6]
    losses = [
        objective_loss(problem.student, problem.teacher, q.given, q.seen, q.target, q.masks, config, 0.05)
        for q in parts
    ]
    alike, whole = (float(loss_of_parts(losses, shares).total.detach()) for shares in ([0.5, 0.5], [0.4, 0.6]))
    assert abs(alike - whole) > 1e-3
    # Without the whole batch's guesses, a part that is guessed by its own mean looks nearer to collapse than it is.
    _, whole_guess = (loss_of_parts(losses, [0.4, 0.6]).collapse, _step(problem, config, 2)[0].collapse)
    assert loss_of_parts(losses, [0.4, 0.6]).collapse < whole_guess - 1e-3


def test_a_step_in_one_part_is_left_as_it_is(make_problem: MakeProblem) -> None:
    whole = _whole(make_problem(Objective.features, RAGGED))
    (only,) = parts_of(whole, 1)
    assert only is whole
    (also,) = parts_of(parts_of(whole, 5)[1], 4)  # a batch of one subject
    assert also.given.subjects == ("b",)


@pytest.mark.parametrize("number", [2, 3, 4, 5])
def test_every_scan_is_in_one_part_with_what_is_known_of_it(make_problem: MakeProblem, number: int) -> None:
    whole, found = _whole(make_problem(Objective.features, RAGGED)), list[tuple[str, str]]()
    parts = parts_of(whole, number)
    assert len(parts) == number
    assert max(len(p.given.subjects) for p in parts) - min(len(p.given.subjects) for p in parts) <= 1
    for part in parts:
        for organ, rows in part.given.rows.items():
            assert rows.numel() > 0
            for place, row in enumerate(rows.tolist()):
                name = part.given.subjects[row]
                found.append((name, organ))
                there = whole.given.rows[organ].tolist().index(whole.given.subjects.index(name))
                assert torch.equal(part.given.volumes[organ][place], whole.given.volumes[organ][there])
                assert torch.equal(part.seen.volumes[organ][place], whole.seen.volumes[organ][there])
                assert torch.equal(part.target.patches[organ][place], whole.target.patches[organ][there])
                assert torch.equal(part.masks.patches[organ][place], whole.masks.patches[organ][there])
    assert sorted(found) == sorted((name, organ) for name, organs in RAGGED.items() for organ in organs)


def test_scans_in_their_own_voxels_are_cut_too(make_problem: MakeProblem) -> None:
    """Two thicknesses, in an order that is not that of the subjects."""
    whole = _whole(make_problem(Objective.features, RAGGED))
    batch, brains = whole.given, whole.given.volumes["brain"]
    blocks = [
        NativeBlock(
            volumes=brains[chosen] if thick == 1 else brains[chosen][..., ::2],
            thickness=(1, 1, thick),
            positions=torch.tensor(chosen),
            spacing_mm=torch.ones(len(chosen), 3, dtype=torch.float64),
        )
        for thick, chosen in ((1, [3, 0]), (2, [2, 1]))
    ]
    native = NativeVolumes(tuple(blocks))
    others = {organ: volumes for organ, volumes in batch.volumes.items() if organ != "brain"}
    given = type(batch)(batch.subjects, batch.organs, batch.rows, others, {"brain": native})
    parts = parts_of(Part(share=1.0, given=given, seen=given, target=whole.target, masks=whole.masks), 2)
    assert [part.given.subjects for part in parts] == [("a", "b"), ("c", "d", "e")]
    repeated = native.repeated()
    assert torch.equal(parts[0].given.native["brain"].repeated(), repeated[:1])
    assert torch.equal(parts[1].given.native["brain"].repeated(), repeated[1:])
