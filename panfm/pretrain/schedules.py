"""Learning rate, teacher's momentum and temperature, and organ masking, as functions of the step, counted over the run from 0."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import replace

from panfm.config import MaskSchedule, OrganMaskConfig, PretrainConfig, PrototypeConfig, Recipe


def learning_rate(step: int, total_steps: int, config: PretrainConfig) -> float:
    """Linear warm-up, then a cosine from learning_rate to final_learning_rate at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - 1 - config.warmup_steps)
    falling = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * falling


def teacher_momentum(step: int, total_steps: int, config: PretrainConfig) -> float:
    """From teacher_momentum at step 0 towards 1 at the end of the run, by a cosine."""
    rising = 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return 1 - (1 - config.teacher_momentum) * rising


def teacher_temperature(step: int, total_steps: int, config: PrototypeConfig) -> float:
    """From teacher_temperature to final_teacher_temperature in a line over `temperature_warmup` of the run; then it stays."""
    warmup = config.temperature_warmup * total_steps
    progress = min(1.0, step / warmup) if warmup else 1.0
    return config.teacher_temperature + (config.final_teacher_temperature - config.teacher_temperature) * progress


def organ_mask_at(step: int, total_steps: int, config: OrganMaskConfig) -> OrganMaskConfig:
    """Organ masking at one step, as settings without a schedule: those of its start at step 0, its own at the last step."""
    if config.schedule is MaskSchedule.constant:
        return config
    progress = min(1.0, step / max(1, total_steps - 1))
    left = 1 - progress if config.schedule is MaskSchedule.linear else 0.5 * (1 + math.cos(math.pi * progress))
    return replace(
        config,
        schedule=MaskSchedule.constant,
        start_rate=None,
        start_temperature=None,
        rate=_between(config.start_rate, config.rate, left),
        temperature=_between(config.start_temperature, config.temperature, left),
    )


def _between(start: float | None, end: float, left: float) -> float:
    """`left` of the way from start to end is still to go; without a start it is the end all along."""
    return end if start is None else end + (start - end) * left


def log_momentum(recipe: Recipe, round_number: int, num_steps: int) -> float:
    """Logarithm of the product of the momenta of the first num_steps steps of a round (counted from 1); -inf if one is 0."""
    first = (round_number - 1) * recipe.pretrain.steps_per_round
    momenta = [teacher_momentum(first + step, recipe.total_steps, recipe.pretrain) for step in range(num_steps)]
    return sum(math.log(momentum) for momentum in momenta) if all(momenta) else -math.inf
