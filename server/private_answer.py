"""What a private answer must hold, and what of it goes on record.

Both follow from what is public: the recipe, the task and the organs that the site counts, which are those that it declares.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

from panfm.config import PrivacyMode, Recipe
from panfm.groups import SHARED_GROUPS, TRUNK, keep_groups
from panfm.pretrain.private_scope import trained_names
from panfm.protocol import JoinAnswer, PrivacySpent, SiteUpdate, TrainTask
from server.aggregation.checks import check_spent

_FROZEN = "privacy.mode=dp_adapters leaves it as it is"


def private_names(task: TrainTask, site: JoinAnswer, answer: SiteUpdate, recipe: Recipe) -> list[str] | None:
    """The parameters that the site had to train and send; None without privacy.

    Args:
        site: its organs, as far as the study uses them.
        answer: of these, it may have offered fewer than when it joined, and then counts only those.
    """
    if not recipe.privacy.is_on:
        return None
    organs = [organ for organ in site.organs if answer.organ_subjects.get(organ, 0) > 0]
    sent = keep_groups(task.student, (*SHARED_GROUPS, *organs))
    return trained_names(sent, recipe.privacy.mode, recipe, organs)


def told_spent(answer: SiteUpdate) -> PrivacySpent | None:
    """What the site tells of its privacy ledger, where it tells it and it can be so."""
    spent = answer.privacy
    return spent if spent is not None and check_spent(spent) is None else None


def told_unchanged(unchanged: Mapping[str, str], recipe: Recipe) -> dict[str, str]:
    """Group -> why it stayed as it was, where what privacy.mode leaves alone is not told as nobody's fault."""
    if recipe.privacy.mode is not PrivacyMode.dp_adapters:
        return dict(unchanged)
    return {group: _FROZEN if group == TRUNK else reason for group, reason in unchanged.items()}
