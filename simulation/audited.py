"""A rehearsal with privacy audits its trainer: what is shown of epsilon, beside what is claimed, for the report."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.config import Recipe
from panfm.pretrain.private_audit import audit_recipe
from panfm.randomness import stream
from panfm.reporting.record import TrainerAudited


def audited(recipe: Recipe) -> TrainerAudited:
    """The audit of a recipe with privacy, as the run's record has it. Takes seconds: the model is a small one."""
    plan, found = audit_recipe(recipe, stream(recipe.seed, "privacy audit"))
    return TrainerAudited(
        mode=recipe.privacy.mode.value,
        canaries=plan.num_canaries,
        noise_multiplier=plan.steps.noise_multiplier,
        sampling_rate=plan.steps.sampling_rate,
        steps=plan.steps.steps,
        delta=plan.delta,
        claimed=found.claimed,
        at_least=found.at_least,
        doubt=plan.doubt,
        signal=found.signal,
        signal_band=found.signal_band,
        noise=found.noise,
        noise_band=found.noise_band,
        found=[f"{breach.question}: {breach.what}" for breach in found.breaches()],
    )


def audit_line(audit: TrainerAudited) -> str:
    """The audit as a line for a terminal."""
    verdict = f"found: {'; '.join(audit.found)}" if audit.found else "nothing found"
    return f"audit of the trainer: epsilon at least {audit.at_least:.2f} of {audit.claimed:.2f} claimed; {verdict}"
