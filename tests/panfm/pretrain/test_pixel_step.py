"""Pixel reconstruction by loops over subjects and organs; hidden voxels move targets alone, and no subject another's loss."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.config import Objective, OrganMaskConfig, OrganMaskRule, PixelConfig
from panfm.pretrain.pixel_step import pixel_step
from panfm.pretrain.step import StepLoss

MakeProblem = Callable[..., Any]
PATCH = 4

RAGGED: dict[str, Sequence[str]] = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart"],
}


def _found(problem: Any, config: PixelConfig | None = None) -> StepLoss:
    return pixel_step(
        problem.student, problem.given, problem.seen, problem.target, problem.masks, config or PixelConfig()
    )


def _visible(problem: Any) -> list[str]:
    return [o for o in problem.seen.rows if not problem.masks.organs[0, problem.seen.organs.index(o)]]


def _predicted(alone: Any) -> dict[str, Tensor]:
    """What the student tells of one subject's patches."""
    organs = _visible(alone)
    rows, masks = {o: alone.seen.rows[o] for o in organs}, {o: alone.masks.patches[o] for o in organs}
    features = alone.student.encode_visible({o: alone.seen.volumes[o] for o in organs}, rows, 1, masks)
    decoded: dict[str, Tensor] = alone.student.decode(features, rows, masks)
    return decoded


def _cubes(volume: Tensor) -> list[np.ndarray]:
    x, y, z = volume.shape
    corners = [(i, j, k) for i in range(0, x, PATCH) for j in range(0, y, PATCH) for k in range(0, z, PATCH)]
    whole = volume.double().numpy()
    return [whole[i : i + PATCH, j : j + PATCH, k : k + PATCH].ravel() for i, j, k in corners]


def _slow(alone: Any) -> float:
    """Mean over one subject's visible organs of the mean over hidden patches of the mean squared error over voxels."""
    predicted, by_organ = _predicted(alone), []
    for organ in _visible(alone):
        losses = []
        for t, cube in enumerate(_cubes(alone.given.volumes[organ][0])):
            if alone.masks.patches[organ][0, t]:
                wanted = (cube - cube.mean()) / np.sqrt(cube.var() + 1e-6)
                errors = [(p - w) ** 2 for p, w in zip(predicted[organ][0, t].tolist(), wanted, strict=True)]
                losses.append(sum(errors) / len(errors))
        by_organ.append(sum(losses) / len(losses))
    return float(sum(by_organ) / len(by_organ))


@pytest.mark.parametrize("rule", [OrganMaskRule.lift, OrganMaskRule.none])
def test_loss_by_loops(make_problem: MakeProblem, rule: OrganMaskRule) -> None:
    problem = make_problem(Objective.pixels, RAGGED, OrganMaskConfig(rule=rule, rate=0.5))
    with torch.no_grad():
        found = _found(problem)
        slow = [_slow(problem.only(row)) for row in range(len(RAGGED))]
    assert float(found.total) == pytest.approx(sum(slow) / len(slow), rel=1e-4)
    assert (float(found.patch), found.organ) == (float(found.total), None)
    assert 0.5 < found.collapse <= 1.0


def test_the_organ_term_is_added_with_its_weight(make_problem: MakeProblem) -> None:
    problem = make_problem(Objective.pixels, RAGGED)
    with torch.no_grad():
        plain, both = _found(problem), _found(problem, PixelConfig(organ=0.4))
        assert both.organ is not None
        assert float(both.total - plain.total) == pytest.approx(0.4 * float(both.organ) * 3 / 5, abs=1e-5)
    assert both.organ_subjects == 3
    assert _found(problem.only(1), PixelConfig(organ=0.4)).organ is None


def test_hidden_voxels_change_no_prediction_only_the_targets(make_problem: MakeProblem) -> None:
    """To the bit, and with voxels that are no numbers at all."""
    problem = make_problem(Objective.pixels, {"a": ["brain", "heart", "liver"]}, OrganMaskConfig(rate=0.5))
    with torch.no_grad():
        before, loss = _predicted(problem), _found(problem)
        spoiled = {organ: _spoil(problem, organ) for organ in problem.seen.rows}
        blind = replace(problem, seen=replace(problem.seen, volumes=spoiled))
        after = _predicted(blind)
        moved = replace(problem, given=replace(problem.given, volumes=_flipped(problem)))
        same, other = _found(blind), _found(moved)
    assert before.keys() == after.keys() == set(_visible(problem))
    assert all(torch.equal(before[organ], after[organ]) for organ in before)
    assert any(bool(volume.isnan().any()) for volume in spoiled.values())
    assert torch.equal(same.total, loss.total)
    assert not torch.allclose(other.total, loss.total)


def _spoil(problem: Any, organ: str) -> Tensor:
    """The student's scan with not-a-number in each hidden patch, and everywhere in a masked organ."""
    volume: Tensor = problem.seen.volumes[organ].clone()
    hidden = problem.masks.patches[organ][0].reshape([side // PATCH for side in volume.shape[1:]])
    for axis in range(3):
        hidden = hidden.repeat_interleave(PATCH, dim=axis)
    volume[0][hidden if organ in _visible(problem) else torch.ones_like(hidden)] = float("nan")
    return volume


def _flipped(problem: Any) -> dict[str, Tensor]:
    return {organ: -volumes for organ, volumes in problem.given.volumes.items()}


def test_targets_are_the_teachers_view_not_the_students(make_problem: MakeProblem) -> None:
    problem = make_problem(Objective.pixels, RAGGED)
    with torch.no_grad():
        # Brightness and contrast of all voxels alike are not in a normalised patch: the same loss from either view.
        brighter = {organ: 3 * volumes - 1 for organ, volumes in problem.given.volumes.items()}
        alike = _found(replace(problem, given=replace(problem.given, volumes=brighter)))
        assert float(alike.total) == pytest.approx(float(_found(problem).total), rel=1e-4)
        mirrored = _found(replace(problem, given=replace(problem.given, volumes=_flipped(problem))))
        assert float(mirrored.total) != pytest.approx(float(alike.total), rel=1e-3)


organ_sets = st.lists(
    st.lists(st.sampled_from(["brain", "heart", "liver"]), min_size=1, unique=True), min_size=2, max_size=4
)


@settings(max_examples=6)
@given(organs=organ_sets)
def test_a_batchs_gradient_is_the_mean_of_its_subjects_gradients(
    make_problem: MakeProblem, organs: list[list[str]]
) -> None:
    problem = make_problem(Objective.pixels, {f"s{n}": own for n, own in enumerate(organs)})
    config = PixelConfig(organ=0.3)
    together = _gradients(problem, config)
    alone = [_gradients(problem.only(row), config) for row in range(len(organs))]
    for name, gradient in together.items():
        expected = torch.stack([part[name] for part in alone]).mean(0)
        assert torch.allclose(gradient, expected, atol=1e-5 * max(1.0, float(expected.abs().max()))), name


def _gradients(problem: Any, config: PixelConfig) -> dict[str, Tensor]:
    problem.student.zero_grad(set_to_none=True)
    torch.autograd.backward(_found(problem, config).total)
    named = problem.student.named_parameters()
    return {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in named}


def test_the_decoder_and_the_subject_tokens_attention_are_trained(make_problem: MakeProblem) -> None:
    """The decoder reads subject and organ tokens, so the row that organ masking asks is trained without another term."""
    problem = make_problem(Objective.pixels, RAGGED)
    projected: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        projected.append(output)

    last = list(problem.student.trunk.blocks)[-1].get_submodule("attention.qkv")
    hook = last.register_forward_hook(keep)
    gradients = _gradients(problem, PixelConfig())
    hook.remove()
    assert projected[0].grad is not None
    assert float(projected[0].grad[: len(RAGGED), : problem.student.config.width].abs().amax(1).min()) > 0
    idle = ("heads.patch_predictor", "heads.organ_predictor", "heads.mask_token")
    still = {n for n, gradient in gradients.items() if not gradient.any() and not n.startswith(idle)}
    assert still == {f"organs.{organ}.query" for organ in ("brain", "heart", "liver")}
