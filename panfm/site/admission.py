"""Whether a site takes up a task: admit(task, policy, facts) -> Admitted | Repeated | Refused.

Pure, total, and only ever stricter than the recipe: it reads no disk and no clock, answers whatever the protocol lets in, and a
stricter policy never admits more. A refusal is an answer that travels; its words stand in `panfm.site.refusals`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import ConfigError
from panfm.protocol import PROTOCOL_VERSION, EvaluateTask, ParcelRequest, Signed, SiteUpdate, Task, TaskParcel
from panfm.signing import is_signed_by
from panfm.site.policy import Policy, PrivacyMode, Public, TaskKind, numbers_of, within_hours
from panfm.site.refusals import reason_of

LONGEST_RECIPE = 50_000
"""Characters of a task's recipe; more than twenty times the longest that comes with panfm."""
_EXPANDING = frozenset("&*!")
"""YAML's signs for references and types, which panfm's own recipes never hold: with them a line grows to gigabytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What the site knows of itself when it is asked."""

    subjects: Mapping[str, frozenset[str]]
    """Organ -> pseudonyms of the subjects to train on, for the organs that it has prepared scans of; for an evaluation, of
    those that it holds out."""
    answered_digest: str | None
    """Digest of the task of this run and round that it answered before, if any."""
    now: datetime
    """By the site's own clock; aware of its time zone."""
    rounds_answered: int
    """Tasks of any run that it answered by training in the 24 hours before; for an evaluation, by evaluating."""
    spent_epsilon: float | None
    """Privacy loss spent so far, at the policy's delta, by those of its subjects who have lost most; None where the policy has
    no budget or nothing was ever charged."""
    free_memory_gib: float | None
    """Free memory of the device that the policy names; None where that is not known."""

    def __post_init__(self) -> None:
        if self.now.utcoffset() is None:
            raise ValueError(
                "a clock without a time zone cannot be compared with the policy's hours; give datetime.now(UTC)"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """The site trains, or evaluates, these organs by this recipe."""

    organs: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """The very same task was answered before: the stored answer is sent again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The site does not train; `code` for programs, `reason` for people."""

    code: str
    setting: str = ""
    """Dotted name of the recipe's setting at fault, where it is one."""
    note: str = ""
    """What the site's own log says besides; it never leaves."""

    @property
    def reason(self) -> str:
        """One line that may leave the site."""
        return reason_of(self.code, self.setting)


def admit(task: Task, policy: Policy, facts: SiteFacts) -> Admitted | Repeated | Refused:
    """Decide on one task; the first thing that speaks against it is the reason.

    Nothing of the task but its digest is read before its signature is known to be a coordinator's whom the policy names.
    """
    digest = task.digest()
    if (code := _misdirected(task, digest, policy)) is not None:
        return Refused(code=code)
    recipe = _recipe_of(task)
    if recipe is None:
        return Refused(code="recipe")
    if not 1 <= task.round <= recipe.rounds:
        return Refused(code="wrong_round")
    if facts.answered_digest is not None:
        return Repeated() if digest == facts.answered_digest else Refused(code="round_answered_otherwise")
    return (
        _against_what_is_asked(task, recipe, policy, facts)
        or _against_the_recipe(recipe, policy)
        or _against_the_moment(policy, facts)
        or _organs_to_train(task, recipe, policy, facts)
    )


def admit_parcel(
    asked: TaskParcel | ParcelRequest, policy: Policy, answered: SiteUpdate | None = None
) -> Refused | None:
    """What speaks against keeping a parcel of a task, or handing out one of an answer; None when nothing does.

    Args:
        answered: the answer of which a parcel is asked for, if there is one.
    """
    if (code := _misdirected(asked, asked.digest(), policy)) is not None:
        return Refused(code=code)
    is_charged = answered is not None and answered.privacy is not None
    if isinstance(asked, ParcelRequest) and not is_charged and (code := _against_release(policy)) is not None:
        return Refused(code=code)
    return None


def offered_organs(policy: Policy, subjects: Mapping[str, frozenset[str]]) -> tuple[str, ...]:
    """Organs of the policy, in its order, that enough subjects have."""
    return tuple(
        organ for organ in policy.organs if len(subjects.get(organ, frozenset())) >= policy.min_subjects_per_organ
    )


def _misdirected(task: Signed, digest: str, policy: Policy) -> str | None:
    """The code of what is wrong with where a task, or a message about its parcels, comes from and goes to."""
    if task.protocol_version != PROTOCOL_VERSION:
        return "protocol"
    if not any(is_signed_by(key, digest, task.signature) for key in policy.coordinator_keys):
        return "signature"
    return None if task.site == policy.site else "wrong_site"


def _recipe_of(task: Task) -> Recipe | None:
    if len(task.recipe) > LONGEST_RECIPE or _EXPANDING & set(task.recipe):
        return None
    try:
        return recipes.recipe_from_yaml(task.recipe)
    except ConfigError:
        return None


def _against_release(policy: Policy) -> str | None:
    """The code of what speaks against an update without noise, or with noise that is charged to nobody."""
    if policy.privacy.mode is PrivacyMode.dp:
        return "privacy"
    return None if Public.updates in policy.public else "updates_not_public"


def _against_what_is_asked(task: Task, recipe: Recipe, policy: Policy, facts: SiteFacts) -> Refused | None:
    """The kind of task, and what would become of its answer."""
    if isinstance(task, EvaluateTask):
        return _against_evaluation(policy, facts)
    if TaskKind.pretrain not in policy.tasks:
        return Refused(code="task_not_allowed", note=f"{type(task).__name__} needs `pretrain` among the policy's tasks")
    if recipe.privacy.is_on:
        return _against_noise(policy, facts)
    if (code := _against_release(policy)) is not None:
        return Refused(code=code, note=f"recipe {recipe.recipe!r:.80} has privacy.mode none")
    return None


def _against_noise(policy: Policy, facts: SiteFacts) -> Refused | None:
    """Noise is charged to a budget; where there is none, it is as if there were no noise.

    Whether this round still fits is for the ledger to say, when all else is settled; here it is only seen that nothing is left.
    """
    budget = policy.privacy.budget
    if budget is None:
        return None if Public.updates in policy.public else Refused(code="no_budget")
    if facts.spent_epsilon is not None and facts.spent_epsilon >= budget.epsilon:
        return Refused(code="budget_spent", note=f"spent: {facts.spent_epsilon:.4g} of {budget.epsilon:g}")
    return None


def _against_evaluation(policy: Policy, facts: SiteFacts) -> Refused | None:
    """A report is metrics and nothing else, so they must be declared public, whatever is demanded of updates."""
    if TaskKind.evaluate not in policy.tasks:
        return Refused(code="task_not_allowed", note="EvaluateTask needs `evaluate` among the policy's tasks")
    if Public.metrics not in policy.public:
        return Refused(code="metrics_not_public", note="an evaluation needs `metrics` among what is public")
    if not any(facts.subjects.values()):
        return Refused(code="none_held_out", note="no scan is marked `validation` in the site's table")
    return None


def _against_the_recipe(recipe: Recipe, policy: Policy) -> Refused | None:
    """A recipe passes when it is one of those named, if any is named, and within all bounds, if any is set."""
    digest = recipes.digest(recipe)
    if not policy.approved_recipes and not policy.bounds:
        return Refused(code="recipe_not_approved", note=f"the policy approves no recipe; this one is {digest}")
    if policy.approved_recipes and digest not in policy.approved_recipes:
        return Refused(code="recipe_not_approved", note=f"this one is {digest}")
    numbers = numbers_of(recipe)
    for name, bounds in sorted(policy.bounds.items()):
        if name.startswith("privacy.") and not recipe.privacy.is_on:
            return Refused(
                code="recipe_out_of_bounds", setting=name, note=f"with privacy.mode none {name} says nothing"
            )
        if not bounds.hold(numbers[name]):
            return Refused(code="recipe_out_of_bounds", setting=name, note=f"{name} is {numbers[name]}")
    if recipe.federation.min_sites_per_group < policy.min_sites_per_group:
        return Refused(code="min_sites_per_group")
    return None


def _against_the_moment(policy: Policy, facts: SiteFacts) -> Refused | None:
    if not within_hours(policy, facts.now):
        return Refused(code="hours")
    if facts.rounds_answered >= policy.rounds_per_day:
        return Refused(code="rounds_per_day")
    needed, free = policy.min_free_memory_gib, facts.free_memory_gib
    if needed and (free is None or not free >= needed):
        return Refused(code="memory", note=f"{needed:g} GiB are asked for, free: {free}")
    return None


def _organs_to_train(task: Task, recipe: Recipe, policy: Policy, facts: SiteFacts) -> Admitted | Refused:
    """What the site offers, the recipe knows and the task carries is trained, if there is enough of it."""
    sent = {name.split(".")[1] for name in task.student if name.startswith("organs.")}
    asked = [organ for organ in recipe.organs if organ in policy.organs and organ in sent and facts.subjects.get(organ)]
    if not asked:
        return Refused(code="no_organ")
    offered = offered_organs(policy, facts.subjects)
    organs = tuple(organ for organ in asked if organ in offered)
    if len(frozenset[str]().union(*(facts.subjects[organ] for organ in organs))) < policy.min_subjects:
        return Refused(code="min_subjects")
    return Admitted(organs=organs, recipe=recipe)
