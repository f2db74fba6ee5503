"""Every reason for which a site says no, and every word with which it says so: one table.

A refusal travels to the coordinator, and nothing else that a site says of its troubles does. Its words are therefore fixed
here, and hold no path, no pseudonym, no count and no value; a `{setting}` stands for the name of one of the recipe's own
settings. What a person at the site needs to know besides is in the site's own log.

Codes that begin with `site_` are of an error at the site, which counts as failed; all others are considered answers.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from functools import cache

from panfm.protocol import PROTOCOL_VERSION
from panfm.site.policy import bounded_names

_REASONS: dict[str, str] = {
    "protocol": f"the site speaks protocol {PROTOCOL_VERSION} and the task another; both need the same panfm version",
    "signature": "the task is not signed by a coordinator whom the site's policy names",
    "wrong_site": "the task is for another site",
    "recipe": "the site cannot read the task's recipe; both need the same panfm version",
    "wrong_round": "the round is not one of the recipe's rounds",
    "round_answered_otherwise": "the site has answered this round of this run to another task",
    "task_not_allowed": "the site's policy does not allow this kind of task",
    "privacy": "the site's policy demands differential privacy, and the recipe has none",
    "budget_spent": "the round would pass the privacy budget of the site's policy",
    "no_budget": "the site's policy has no privacy budget to charge the round to, and declares no update public",
    "unfinished": "the site has begun this round several times and never finished it; a person there has to look first",
    "updates_not_public": "the site's policy lets no update leave without noise, and the recipe adds none",
    "metrics_not_public": "the site's policy lets no metric leave, and an evaluation is made of nothing else",
    "none_held_out": "the site holds no subject out for evaluation",
    "recipe_not_approved": "the site has not approved this recipe; send it to the site for review",
    "recipe_out_of_bounds": "the recipe's {setting} is outside the bounds of the site's policy",
    "min_sites_per_group": "the site's policy asks for a larger federation.min_sites_per_group than the recipe has",
    "no_organ": "the site offers no organ of this recipe",
    "min_subjects": "the site has fewer subjects than its policy asks for",
    "answer_gone": "the site answered this round long ago, and keeps no more of its answer than that it gave one",
    "parcels_missing": "a parcel of the task is not at the site; send them all again",
    "parcels_full": "the site has no room for more parcels",
    "parcel_unknown": "the site has no such parcel of its answer to this round",
    "hours": "the site's policy does not allow work at this time of the day; ask again later",
    "rounds_per_day": "the site has done this as often today as its policy allows; ask again later",
    "memory": "the site has too little free memory now; ask again later",
    "task_kind": "the site runs client apps and no other kind of program",
    "bundle_not_approved": "the site has not approved this bundle; send it for review and name its SHA-256",
    "bundle_mislabelled": "the bundle is not the one whose SHA-256 was announced",
    "bundle_unreadable": "the bundle holds what a site does not unpack; build it with `panfm bundle`",
    "site_config": "the site's configuration needs mending; its own log says what",
    "site_data": "the site's prepared scans are missing or damaged; its own log says which",
    "site_protocol": "the site could not read the message; both sides need the same panfm version",
    "site_parameters": "the parameters sent do not fit the site's model",
    "site_training": "training diverged at the site; lower pretrain.learning_rate",
    "site_audit": "the site cannot keep its audit log or privacy ledger, and answers nothing until a person there has looked",
    "site_memory": "the site ran out of memory",
    "site_egress": "what the site would have sent did not pass its own gate; its own log says why",
    "site_error": "an error at the site; its own log says which",
}


def reason_of(code: str, setting: str = "") -> str:
    """The words of a code.

    Args:
        setting: dotted name of the recipe's setting at fault, for the codes that name one.
    """
    return _REASONS[code].format(setting=setting)


@cache
def sayable() -> frozenset[tuple[str, str]]:
    """Every (code, reason) that a site can say."""
    return frozenset((code, reason_of(code, setting)) for code in _REASONS for setting in ("", *bounded_names()))
