"""The schedules at the points where a closed form is known, and between them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import MaskSchedule, OrganMaskConfig, PretrainConfig, PrototypeConfig, Recipe
from panfm.pretrain.schedules import (
    learning_rate,
    log_momentum,
    organ_mask_at,
    teacher_momentum,
    teacher_temperature,
)

CONFIG = PretrainConfig(learning_rate=1e-3, final_learning_rate=1e-5, warmup_steps=10, teacher_momentum=0.99)
TOTAL = 111
"""10 steps of warm-up, then 101: the cosine's middle falls on a step."""


def test_learning_rate_rises_in_a_line_and_falls_by_a_cosine() -> None:
    assert [learning_rate(step, TOTAL, CONFIG) for step in range(10)] == pytest.approx([1e-4 * n for n in range(1, 11)])
    assert learning_rate(10, TOTAL, CONFIG) == pytest.approx(1e-3)
    assert learning_rate(60, TOTAL, CONFIG) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(TOTAL - 1, TOTAL, CONFIG) == pytest.approx(1e-5)
    assert learning_rate(TOTAL + 50, TOTAL, CONFIG) == pytest.approx(1e-5)


def test_momentum_rises_by_a_cosine_towards_1() -> None:
    assert teacher_momentum(0, 100, CONFIG) == pytest.approx(0.99)
    assert teacher_momentum(50, 100, CONFIG) == pytest.approx(0.995)
    assert teacher_momentum(25, 100, CONFIG) == pytest.approx(1 - 0.01 * (1 + math.sqrt(0.5)) / 2)
    assert teacher_momentum(100, 100, CONFIG) == pytest.approx(1.0)


@given(total=st.integers(1, 300), warmup=st.integers(0, 40), base=st.floats(0.0, 0.999))
def test_schedules_stay_in_bounds_and_are_monotonic(total: int, warmup: int, base: float) -> None:
    config = PretrainConfig(warmup_steps=warmup, teacher_momentum=base)
    rates = [learning_rate(step, total, config) for step in range(total)]
    assert all(0 < rate <= config.learning_rate * (1 + 1e-12) for rate in rates)
    peak = min(max(warmup - 1, 0), total - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    momenta = [teacher_momentum(step, total, config) for step in range(total)]
    assert momenta == sorted(momenta)
    assert all(base - 1e-12 <= momentum < 1 for momentum in momenta)


def test_log_momentum_is_the_product_of_a_rounds_momenta(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(steps_per_round=5, teacher_momentum=0.9)  # two rounds: steps 0 to 4 and 5 to 9
    momenta = [teacher_momentum(step, 10, recipe.pretrain) for step in range(10)]
    for round_number, steps in ((1, range(0, 5)), (2, range(5, 10))):
        assert math.exp(log_momentum(recipe, round_number, 5)) == pytest.approx(math.prod(momenta[s] for s in steps))
    assert math.exp(log_momentum(recipe, 2, 2)) == pytest.approx(momenta[5] * momenta[6])
    assert log_momentum(recipe, 1, 0) == 0.0


def test_a_momentum_of_zero_forgets_everything(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(teacher_momentum=0.0)
    assert log_momentum(recipe, 1, 3) == -math.inf
    assert math.isfinite(log_momentum(recipe, 2, 3))


def test_teacher_temperature_rises_in_a_line_and_stays() -> None:
    config = PrototypeConfig(teacher_temperature=0.04, final_teacher_temperature=0.07, temperature_warmup=0.3)
    found = [teacher_temperature(step, 100, config) for step in (0, 10, 15, 30, 60, 99)]
    assert found == pytest.approx([0.04, 0.05, 0.055, 0.07, 0.07, 0.07])
    at_once = PrototypeConfig(temperature_warmup=0.0)
    assert teacher_temperature(0, 100, at_once) == at_once.final_teacher_temperature


def test_organ_masking_without_a_schedule_is_the_very_same_settings() -> None:
    config = OrganMaskConfig(rate=0.4)
    assert organ_mask_at(7, 100, config) is config


@pytest.mark.parametrize(
    ("schedule", "quarter"), [(MaskSchedule.linear, 0.25), (MaskSchedule.cosine, (1 - math.sqrt(0.5)) / 2)]
)
def test_organ_masking_goes_from_its_start_to_its_own_values(schedule: MaskSchedule, quarter: float) -> None:
    config = OrganMaskConfig(schedule=schedule, start_rate=0.1, rate=0.5, start_temperature=2.0, temperature=1.0)
    found = [organ_mask_at(step, 101, config) for step in (0, 25, 50, 100, 150)]
    assert [one.rate for one in found] == pytest.approx([0.1, 0.1 + 0.4 * quarter, 0.3, 0.5, 0.5])
    assert [one.temperature for one in found] == pytest.approx([2.0, 2.0 - quarter, 1.5, 1.0, 1.0])
    assert {one.schedule for one in found} == {MaskSchedule.constant}
    assert {(one.rule, one.explore) for one in found} == {(config.rule, config.explore)}


@given(
    schedule=st.sampled_from([MaskSchedule.linear, MaskSchedule.cosine]),
    total=st.integers(1, 60),
    start=st.floats(0.0, 1.0),
    end=st.floats(0.0, 1.0),
)
def test_a_scheduled_rate_is_monotonic_and_what_has_no_start_stays(
    schedule: MaskSchedule, total: int, start: float, end: float
) -> None:
    config = OrganMaskConfig(schedule=schedule, start_rate=start, rate=end)
    found = [organ_mask_at(step, total, config) for step in range(total)]
    rates = [one.rate for one in found]
    assert rates[0] == pytest.approx(start)
    assert rates[-1] == pytest.approx(end if total > 1 else start)
    slack = [later - earlier for earlier, later in itertools.pairwise(rates)]
    assert all((step <= 1e-12) if end < start else (step >= -1e-12) for step in slack)
    assert {one.temperature for one in found} == {config.temperature}
