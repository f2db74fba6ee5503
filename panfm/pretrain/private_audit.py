"""Empirical epsilon beside claimed epsilon for the trainer that a recipe asks for, quickly enough to stand in every report.

It exists because a claim is arithmetic on what the trainer should do, and an audit measures what it does. The recipe's mode,
objective and masks are those of the study; model and crops are as small as they get, and the subjects never lived, so that it
costs seconds and nobody's budget. What it can see and what only the contract can: `panfm.privacy.one_run_audit`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace

import numpy as np

from panfm.config import Recipe
from panfm.pretrain.private_trial import TrialTraining
from panfm.privacy.contract import made_up_cohort
from panfm.privacy.one_run_audit import Canaries, OneRunFound, OneRunPlan, one_run_audit

_PART = 64
"""Subjects of a physical batch: so small a model waits for Python, not for memory."""


def audit_recipe(
    recipe: Recipe, draws: np.random.Generator, plan: OneRunPlan | None = None
) -> tuple[OneRunPlan, OneRunFound]:
    """Audit the trainer of a recipe with privacy in one run.

    Args:
        draws: of the canaries' coins and coordinates; never of samples or noise.
        plan: noise, rate and steps; the audit's own if not given, for a study's would often leave nothing to be seen.
    Returns: what was claimed and done, with no more canaries than there are trained numbers; and what was found.
    Raises: ConfigError when the recipe cannot be had with privacy.
    """
    small, plan = smallest(recipe), plan or OneRunPlan()

    def make(clip_norm: float, noise_multiplier: float, canaries: Canaries) -> TrialTraining:
        trainer = TrialTraining(small, recipe.privacy.mode, clip_norm, noise_multiplier, canaries)
        trainer.most = _PART
        return trainer

    trained = sum(parameter.numel() for parameter in make(1.0, 1.0, {}).training.trained.values())
    plan = replace(plan, num_canaries=min(plan.num_canaries, trained))
    cohort = made_up_cohort({organ: tuple(grid.shape) for organ, grid in small.organs.items()})
    return plan, one_run_audit(make, cohort, draws, plan)


def smallest(recipe: Recipe) -> Recipe:
    """The recipe with the smallest model and crops in which all that it asks for still happens."""
    model = replace(
        recipe.model, width=12, depth=1, heads=2, mlp_ratio=2.0, adapter_width=2, predictor_width=48, patch=4
    )
    organs = {organ: replace(grid, shape=[8, 8, 8]) for organ, grid in recipe.organs.items()}
    return replace(recipe, organs=organs, model=model)
