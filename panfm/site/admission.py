"""Whether a site takes up a task: admit(task, policy, facts) -> Admitted | Refused. Pure, total, and only ever stricter.

A refusal is an answer that travels; its words hold no path, no pseudonym and no count.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import ConfigError
from panfm.protocol import PROTOCOL_VERSION, TrainTask
from panfm.signing import is_signed_by
from panfm.site.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the site knows of itself when it is asked."""

    subjects: Mapping[str, frozenset[str]]
    """Organ -> pseudonyms of the subjects to train on, for the organs that it offers and has prepared scans of."""
    answered_digest: str | None
    """Digest of the task of this run and round that it answered before, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The site trains these organs by this recipe."""

    organs: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """The very same task was answered before: the stored answer is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The site does not train; `code` for programs, `reason` for people."""

    code: str
    reason: str


def admit(task: TrainTask, policy: Policy, facts: SiteFacts) -> Admitted | Repeated | Refused:
    """Decide on one task; the first thing that speaks against it is the reason.

    Nothing of the task but its digest is read before its signature is known to be the coordinator's.
    """
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
    try:
        recipe = recipes.recipe_from_yaml(task.recipe)
    except ConfigError:
        return Refused(code="recipe", reason="the site cannot read the task's recipe; both need the same panfm version")
    if not 1 <= task.round <= recipe.rounds:
        return Refused(code="wrong_round", reason=f"round {task.round} is outside the recipe's 1 to {recipe.rounds}")
    if facts.answered_digest is not None:
        return _answered_before(digest, facts.answered_digest)
    return _enough(task, recipe, policy, facts)


def _answered_before(digest: str, answered: str) -> Repeated | Refused:
    if digest == answered:
        return Repeated()
    return Refused(
        code="round_answered_otherwise", reason="the site has answered this round of this run to another task"
    )


def _enough(task: TrainTask, recipe: Recipe, policy: Policy, facts: SiteFacts) -> Admitted | Refused:
    """What the site offers, the recipe knows and the task carries is trained, if there is enough of it."""
    sent = {name.split(".")[1] for name in task.student if name.startswith("organs.")}
    organs = tuple(organ for organ in recipe.organs if organ in facts.subjects and organ in sent)
    if recipe.federation.min_sites_per_group < policy.min_sites_per_group:
        return Refused(
            code="min_sites_per_group",
            reason=f"the site asks for min_sites_per_group {policy.min_sites_per_group} or more, "
            f"the recipe has {recipe.federation.min_sites_per_group}",
        )
    if not organs:
        return Refused(code="no_organ", reason="the site offers no organ of this recipe")
    if len(frozenset[str]().union(*(facts.subjects[organ] for organ in organs))) < policy.min_subjects:
        return Refused(code="min_subjects", reason="the site has fewer subjects than its policy asks for")
    return Admitted(organs=organs, recipe=recipe)
