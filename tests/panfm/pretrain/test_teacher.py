"""The teacher is an exponential moving average of the student, is never trained, and leaves the student alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from panfm.errors import CheckpointError
from panfm.models.pan_organ import PanOrganModel
from panfm.pretrain.teacher import Teacher
from panfm.update import clone

MakeModel = Callable[..., PanOrganModel]


def test_follows_by_the_formula_and_leaves_the_student_alone(make_model: MakeModel) -> None:
    student, start = make_model(seed=1), clone(dict(make_model(seed=2).named_parameters()))
    before = clone(dict(student.named_parameters()))
    teacher = Teacher(make_model(seed=3), start)
    expected = {name: value.double() for name, value in start.items()}
    for momentum in (0.9, 0.4, 0.0, 0.99):
        teacher.follow(student, momentum)
        expected = {name: momentum * value + (1 - momentum) * before[name].double() for name, value in expected.items()}
        for name, value in teacher.model.named_parameters():
            assert torch.allclose(value.double(), expected[name], atol=1e-6), name
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())


def test_a_resting_student_is_approached_by_the_product_of_momenta(make_model: MakeModel) -> None:
    student, other = make_model(seed=1), make_model(seed=2)
    start = clone(dict(other.named_parameters()))
    teacher = Teacher(make_model(), start)
    for _ in range(10):
        teacher.follow(student, 0.8)
    for name, parameter in student.named_parameters():
        expected = parameter + 0.8**10 * (start[name] - parameter)
        assert torch.allclose(dict(teacher.model.named_parameters())[name], expected, atol=1e-5)


def test_is_never_trained(make_model: MakeModel) -> None:
    start = clone(dict(make_model(seed=2).named_parameters()))
    teacher = Teacher(make_model(), start)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert not teacher.model.training
    teacher.follow(make_model(seed=1), 0.5)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    with pytest.raises(CheckpointError):
        Teacher(make_model(("brain",)), start)


def test_the_task_keeps_its_own_teacher(make_model: MakeModel) -> None:
    """The parameters that were sent are copied, so what the site does to its teacher does not change them."""
    sent = clone(dict(make_model(seed=2).named_parameters()))
    kept = clone(sent)
    Teacher(make_model(), sent).follow(make_model(seed=1), 0.1)
    assert all(torch.equal(sent[name], kept[name]) for name in sent)


def test_all_at_once_is_the_loop_to_the_bit(make_model: MakeModel) -> None:
    student, start = make_model(seed=1), clone(dict(make_model(seed=2).named_parameters()))
    teacher, named = Teacher(make_model(seed=3), start), dict(student.named_parameters())
    for momentum in (0.99, 0.3):
        teacher.follow(student, momentum)
        start = {name: torch.lerp(value, named[name].detach(), 1 - momentum) for name, value in start.items()}
    assert all(torch.equal(value, start[name]) for name, value in teacher.model.named_parameters())
