"""Learning rate and teacher momentum as functions of the step, counted over the whole run from 0."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

from panfm.config import PretrainConfig, Recipe


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


def log_momentum(recipe: Recipe, round_number: int, num_steps: int) -> float:
    """Logarithm of the product of the momenta of the first num_steps steps of a round (counted from 1); -inf if one is 0."""
    first = (round_number - 1) * recipe.pretrain.steps_per_round
    momenta = [teacher_momentum(first + step, recipe.total_steps, recipe.pretrain) for step in range(num_steps)]
    return sum(math.log(momentum) for momentum in momenta) if all(momenta) else -math.inf
