"""Whether a site takes up a task: admit(task, policy, facts) -> Admitted | Refused. Pure, total, and only ever stricter.

A refusal is an answer that travels; its words hold no path, no pseudonym and no count.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

from panfm.config import Recipe
from panfm.protocol import PROTOCOL_VERSION, TrainTask
from panfm.signing import is_signed_by
from panfm.site.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the site knows of itself when it is asked."""

    organs: tuple[str, ...]
    """Organs that it offers and has prepared scans of."""
    num_subjects: int
    answered_digest: str | None
    """Digest of the task of this run and round that it answered before, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The site trains these organs."""

    organs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """The very same task was answered before: the stored answer is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The site does not train; `code` for programs, `reason` for people."""

    code: str
    reason: str


def admit(task: TrainTask, recipe: Recipe, policy: Policy, facts: SiteFacts) -> Admitted | Repeated | Refused:
    """Decide on one task; the first thing that speaks against it is the reason."""
    digest = task.digest()
    if task.protocol_version != PROTOCOL_VERSION:
        return Refused(
            code="protocol", reason=f"the site speaks protocol {PROTOCOL_VERSION}, the task {task.protocol_version}"
        )
    if not is_signed_by(policy.coordinator_key, digest, task.signature):
        return Refused(
            code="signature", reason="the task is not signed by the coordinator whom the site's policy names"
        )
    if task.site != policy.site:
        return Refused(code="wrong_site", reason="the task is for another site")
    if not 1 <= task.round <= recipe.rounds:
        return Refused(code="wrong_round", reason=f"round {task.round} is outside the recipe's 1 to {recipe.rounds}")
    if facts.answered_digest is not None:
        return _answered_before(digest, facts.answered_digest)
    return _enough(recipe, policy, facts)


def _answered_before(digest: str, answered: str) -> Repeated | Refused:
    if digest == answered:
        return Repeated()
    return Refused(
        code="round_answered_otherwise", reason="the site has answered this round of this run to another task"
    )


def _enough(recipe: Recipe, policy: Policy, facts: SiteFacts) -> Admitted | Refused:
    organs = tuple(organ for organ in facts.organs if organ in recipe.organs)
    if recipe.federation.min_sites_per_group < policy.min_sites_per_group:
        return Refused(
            code="min_sites_per_group",
            reason=f"the site asks for min_sites_per_group {policy.min_sites_per_group} or more, "
            f"the recipe has {recipe.federation.min_sites_per_group}",
        )
    if not organs:
        return Refused(code="no_organ", reason="the site offers no organ of this recipe")
    if facts.num_subjects < policy.min_subjects:
        return Refused(code="min_subjects", reason="the site has fewer subjects than its policy asks for")
    return Admitted(organs=organs)
