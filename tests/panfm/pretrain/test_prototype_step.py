"""The prototype objective equals a sum over subjects, organs, patches and prototypes by loops; centres add up over sites."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from panfm.config import Objective, OrganMaskConfig, OrganMaskRule, PrototypeConfig
from panfm.models.pan_organ import PanOrganModel
from panfm.models.prototypes import PrototypeHead
from panfm.pretrain.koleo import koleo_loss
from panfm.pretrain.prototype_step import move_centres, prototype_step
from panfm.pretrain.step import Centres, StepLoss, organ_term

MakeProblem = Callable[..., Any]

RAGGED: dict[str, Sequence[str]] = {
    "a": ["brain", "heart", "liver"],
    "b": ["heart"],
    "c": ["brain", "liver"],
    "d": ["brain"],
    "e": ["brain", "heart"],
}
CONFIG = PrototypeConfig(subject=1.0, patch=0.7, student_temperature=0.2)
TAU_T = 0.05
PROTOTYPES = 32


def _head(model: PanOrganModel) -> PrototypeHead:
    assert model.heads.prototypes is not None
    return model.heads.prototypes


def _found(problem: Any, config: PrototypeConfig = CONFIG) -> StepLoss:
    return prototype_step(problem.student, problem.teacher, problem.seen, problem.target, problem.masks, config, TAU_T)


def _logits(head: PrototypeHead, token: Tensor) -> list[float]:
    """Cosines by dot products in fp64, prototype by prototype."""
    x = token.double()
    for layer, last in ((head.first, False), (head.second, False), (head.third, True)):
        x = layer.weight.double() @ x + layer.bias.double()
        x = x if last else x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return [float(x @ p / (x.norm() * p.norm())) for p in head.weight.double()]


def _cross_entropy(student: list[float], teacher: list[float], centre: Tensor) -> float:
    wanted = [math.exp((t - c) / TAU_T) for t, c in zip(teacher, centre.tolist(), strict=True)]
    own = [math.exp(s / CONFIG.student_temperature) for s in student]
    return -sum(w / sum(wanted) * math.log(o / sum(own)) for w, o in zip(wanted, own, strict=True))


def _slow(alone: Any) -> tuple[float, float, list[float], Tensor]:
    """Of one subject: subject term, patch term, the teacher's subject logits, mean of its logits of hidden patches."""
    masks, own, theirs = alone.masks, _head(alone.student), _head(alone.teacher)
    seen = [o for o in alone.seen.rows if not masks.organs[0, alone.seen.organs.index(o)]]
    features = alone.student(
        {o: alone.seen.volumes[o] for o in seen},
        {o: alone.seen.rows[o] for o in seen},
        1,
        {o: masks.patches[o] for o in seen},
    )
    teacher_subject = _logits(theirs, alone.target.subject[0])
    subject = _cross_entropy(_logits(own, features.subject[0]), teacher_subject, own.subject_centre)
    by_organ, means = [], []
    for organ in seen:
        hidden = [t for t, gone in enumerate(masks.patches[organ][0].tolist()) if gone]
        logits = {t: _logits(theirs, alone.target.patches[organ][0, t]) for t in hidden}
        told = {t: _logits(own, features.patches[organ][0, t]) for t in hidden}
        by_organ.append(sum(_cross_entropy(told[t], logits[t], own.patch_centre) for t in hidden) / len(hidden))
        means.append(torch.tensor(list(logits.values())).mean(0))
    return subject, sum(by_organ) / len(seen), teacher_subject, torch.stack(means).mean(0)


@pytest.mark.parametrize("rule", [OrganMaskRule.lift, OrganMaskRule.none])
def test_loss_and_means_by_loops(make_problem: MakeProblem, rule: OrganMaskRule) -> None:
    problem = make_problem(Objective.prototypes, RAGGED, OrganMaskConfig(rule=rule, rate=0.5))
    assert bool(problem.masks.organs.any()) == (rule is OrganMaskRule.lift)
    with torch.no_grad():
        found = _found(problem)
        slow = [_slow(problem.only(row)) for row in range(len(RAGGED))]
    subject = sum(part[0] for part in slow) / len(slow)
    patch = sum(part[1] for part in slow) / len(slow)
    assert float(found.patch) == pytest.approx(patch, rel=1e-4)
    assert found.organ is not None
    assert float(found.organ) == pytest.approx(subject, rel=1e-4)
    assert float(found.total) == pytest.approx(subject + 0.7 * patch, rel=1e-4)
    assert found.organ_subjects == len(RAGGED)
    assert found.collapse == pytest.approx(math.log(PROTOTYPES))
    assert found.centres is not None
    assert torch.allclose(found.centres.subject, torch.tensor([part[2] for part in slow]).mean(0), atol=1e-5)
    assert torch.allclose(found.centres.patch, torch.stack([part[3] for part in slow]).mean(0), atol=1e-5)


def test_optional_terms_are_added_with_their_weights(make_problem: MakeProblem) -> None:
    problem = make_problem(Objective.prototypes, RAGGED)
    with torch.no_grad():
        plain = float(_found(problem).total)
        spread = float(_found(problem, replace(CONFIG, koleo=0.1)).total)
        organ = float(_found(problem, replace(CONFIG, organ=0.3)).total)
        features = problem.student(*_shown(problem))
        assert spread - plain == pytest.approx(0.1 * float(koleo_loss(features.subject)), abs=1e-5)
        term, _ = organ_term(problem.student, problem.seen, features, problem.target, problem.masks.organs)
    assert organ - plain == pytest.approx(0.3 * float(term), abs=1e-5)
    alone = problem.only(0)
    with torch.no_grad():
        assert float(_found(alone, replace(CONFIG, koleo=0.1)).total) == float(_found(alone).total)


def _shown(problem: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], int, dict[str, Tensor]]:
    masks, seen = problem.masks, problem.seen
    keep = {o: ~masks.organs[rows, seen.organs.index(o)] for o, rows in seen.rows.items()}
    keep = {organ: kept for organ, kept in keep.items() if bool(kept.any())}
    scans = {organ: seen.volumes[organ][kept] for organ, kept in keep.items()}
    rows = {organ: seen.rows[organ][kept] for organ, kept in keep.items()}
    return scans, rows, len(seen.subjects), {organ: masks.patches[organ][kept] for organ, kept in keep.items()}


def test_with_the_centres_fixed_a_subjects_part_depends_on_no_other(make_problem: MakeProblem) -> None:
    problem = make_problem(Objective.prototypes, RAGGED)
    with torch.no_grad():
        parts = [float(_found(problem.only(row)).total) for row in range(len(RAGGED))]
        assert float(_found(problem).total) == pytest.approx(sum(parts) / len(parts), rel=1e-5)


def test_gradients_reach_head_and_trunk_but_neither_centres_nor_teacher(make_problem: MakeProblem) -> None:
    problem = make_problem(Objective.prototypes, RAGGED)
    problem.student.zero_grad(set_to_none=True)
    torch.autograd.backward(_found(problem).total)
    untouched = {name for name, p in problem.student.named_parameters() if p.grad is None}
    idle = ("heads.patch_predictor", "heads.organ_predictor", "heads.prototypes.subject_centre")
    assert {name for name in untouched if not name.startswith(idle) and not name.endswith(".query")} == {
        "heads.prototypes.patch_centre"
    }
    assert all(p.grad is None for p in problem.teacher.parameters())


def test_the_last_blocks_subject_token_attention_is_trained(make_problem: MakeProblem) -> None:
    """It is what organ masking reads; without the subject term nothing would train it."""
    for weight, moves in ((1.0, True), (0.0, False)):
        problem = make_problem(Objective.prototypes, RAGGED)
        projected: list[Tensor] = []

        def keep(_module: object, _inputs: object, output: Tensor, projected: list[Tensor] = projected) -> None:
            output.retain_grad()
            projected.append(output)

        last = list(problem.student.trunk.blocks)[-1].get_submodule("attention.qkv")
        hook = last.register_forward_hook(keep)
        torch.autograd.backward(_found(problem, replace(CONFIG, subject=weight)).total)
        hook.remove()
        assert projected[0].grad is not None
        width = problem.student.config.width
        assert bool(projected[0].grad[: len(RAGGED), :width].any()) == moves


def _means(problem: Any) -> tuple[Tensor, Tensor]:
    centres = _found(problem).centres
    assert centres is not None
    return centres.subject, centres.patch


def test_centres_of_two_sites_are_those_of_all_their_subjects(make_problem: MakeProblem) -> None:
    """By the weights of their subjects, as the coordinator averages parameters: to rounding, over several steps."""
    problem = make_problem(Objective.prototypes, RAGGED)
    parts = [problem.only(row) for row in range(len(RAGGED))]
    sites, pooled = [parts[:2], parts[2:]], copy.deepcopy(problem.student)
    ends = []
    for site in sites:
        student = copy.deepcopy(problem.student)
        for _ in range(4):
            found = [_means(replace(part, student=student)) for part in site]
            subject, patch = (torch.stack(means).mean(0) for means in zip(*found, strict=True))
            move_centres(student, Centres(subject=subject, patch=patch), 0.9)
        ends.append(_head(student))
    for _ in range(4):
        subject, patch = _means(replace(problem, student=pooled))
        move_centres(pooled, Centres(subject=subject, patch=patch), 0.9)
    for name in ("subject_centre", "patch_centre"):
        averaged = sum(len(site) / len(parts) * getattr(end, name) for site, end in zip(sites, ends, strict=True))
        expected = getattr(_head(pooled), name)
        assert torch.allclose(averaged, expected, atol=1e-6)
        assert not torch.allclose(getattr(ends[0], name), expected, atol=1e-3)
