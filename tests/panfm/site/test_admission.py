"""Admission is pure and total, and a stricter policy never admits more."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm import recipes
from panfm.protocol import PROTOCOL_VERSION, TrainTask
from panfm.signing import public_hex, sign
from panfm.site.admission import Admitted, Refused, Repeated, SiteFacts, admit
from panfm.site.policy import Policy

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ORGANS = ("brain", "heart", "liver")
RECIPES = {
    number: recipes.to_yaml(
        recipes.recipe_of(recipes.load(["recipe=smoke", f"federation.min_sites_per_group={number}"]))
    )
    for number in (1, 2, 3)
}


def _task(recipe: str = RECIPES[2], organs: tuple[str, ...] = ORGANS, **changes: Any) -> TrainTask:
    names = ["trunk.x", "heads.x", *(f"organs.{organ}.x" for organ in organs)]
    parameters = {name: torch.zeros(1) for name in names}
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "recipe": recipe}
    task = TrainTask(**(values | {"student": parameters, "teacher": parameters} | changes))
    return task.signed(sign(KEY, task.digest()))


def _policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {"site": "north", "coordinator_key": public_hex(KEY), "organs": list(ORGANS)}
    return Policy(**(values | changes))


def _facts(answered: str | None = None, /, **subjects: int) -> SiteFacts:
    return SiteFacts(
        subjects={organ: frozenset(f"s{i}" for i in range(number)) for organ, number in subjects.items()},
        answered_digest=answered,
    )


FACTS = _facts(brain=5, heart=3)


def test_what_is_offered_known_and_sent_is_trained_in_the_recipes_order() -> None:
    verdict = admit(_task(), _policy(), _facts(liver=2, brain=5, spleen=9))
    assert isinstance(verdict, Admitted)
    assert verdict.organs == ("brain", "liver")
    assert verdict.recipe == recipes.recipe_from_yaml(RECIPES[2])
    fewer = admit(_task(organs=("liver",)), _policy(), _facts(liver=2, brain=5))
    assert isinstance(fewer, Admitted)
    assert fewer.organs == ("liver",)


@pytest.mark.parametrize(
    ("task", "policy", "facts", "code"),
    [
        (_task(protocol_version=PROTOCOL_VERSION + 1), _policy(), FACTS, "protocol"),
        (_task().signed("00" * 64), _policy(), FACTS, "signature"),
        (_task(), _policy(coordinator_key="ab" * 32), FACTS, "signature"),
        (_task(site="south"), _policy(), FACTS, "wrong_site"),
        (_task(recipe="rounds: many"), _policy(), FACTS, "recipe"),
        (_task(recipe="recipe: ${oc.env:HOME}"), _policy(), FACTS, "recipe"),
        (_task(round=0), _policy(), FACTS, "wrong_round"),
        (_task(round=3), _policy(), FACTS, "wrong_round"),
        (_task(), _policy(), _facts("00" * 32, brain=5), "round_answered_otherwise"),
        (_task(), _policy(min_sites_per_group=3), FACTS, "min_sites_per_group"),
        (_task(), _policy(), _facts(spleen=4), "no_organ"),
        (_task(), _policy(), _facts(), "no_organ"),
        (_task(), _policy(min_subjects=6), FACTS, "min_subjects"),
    ],
)
def test_each_reason_against_a_task(task: TrainTask, policy: Policy, facts: SiteFacts, code: str) -> None:
    verdict = admit(task, policy, facts)
    assert isinstance(verdict, Refused)
    assert verdict.code == code
    assert "\n" not in verdict.reason


def test_min_sites_per_group_compares_the_policy_with_the_recipe() -> None:
    """DESIGN section 5: below the policy's own value the site sends no organ, before it trains."""
    for asked in (1, 2, 3):
        for recipe, text in RECIPES.items():
            verdict = admit(_task(recipe=text), _policy(min_sites_per_group=asked), FACTS)
            assert isinstance(verdict, Admitted) == (recipe >= asked), (asked, recipe)


def test_subjects_are_counted_once_and_only_those_that_would_train() -> None:
    overlapping = SiteFacts(
        subjects={"brain": frozenset("ab"), "heart": frozenset("bc"), "spleen": frozenset("defgh")},
        answered_digest=None,
    )
    assert isinstance(admit(_task(), _policy(min_subjects=3), overlapping), Admitted)
    assert isinstance(admit(_task(), _policy(min_subjects=4), overlapping), Refused)


def test_same_task_again_is_neither_trained_nor_refused() -> None:
    task = _task()
    assert admit(task, _policy(), _facts(task.digest(), brain=5)) == Repeated()
    # Even where the policy has become stricter since: the answer was given, and nothing is trained.
    assert admit(task, _policy(min_subjects=100), _facts(task.digest(), brain=5)) == Repeated()


def test_reasons_hold_no_count_and_no_name() -> None:
    """What a refusal says travels to the coordinator."""
    secretive = SiteFacts(subjects={"brain": frozenset({"sub-31415"})}, answered_digest=None)
    verdict = admit(_task(), _policy(min_subjects=27_182), secretive)
    assert isinstance(verdict, Refused)
    assert not any(secret in verdict.reason for secret in ("31415", "27182", "27_182", "1 "))


counts = st.dictionaries(st.sampled_from([*ORGANS, "spleen"]), st.integers(1, 6), max_size=4)


@given(
    held=counts,
    number=st.sampled_from([1, 2, 3]),
    low=st.tuples(st.integers(1, 7), st.integers(1, 4)),
    more=st.tuples(st.integers(0, 7), st.integers(0, 4)),
    withdrawn=st.sets(st.sampled_from(ORGANS)),
)
@settings(max_examples=15)
def test_a_stricter_policy_never_admits_more(
    held: dict[str, int], number: int, low: tuple[int, int], more: tuple[int, int], withdrawn: set[str]
) -> None:
    """Stricter in any way: more subjects, more sites, fewer organs offered."""
    task = _task(recipe=RECIPES[number])
    loose = admit(task, _policy(min_subjects=low[0], min_sites_per_group=low[1]), _facts(None, **held))
    kept = {organ: number for organ, number in held.items() if organ not in withdrawn}
    tight = admit(
        task, _policy(min_subjects=low[0] + more[0], min_sites_per_group=low[1] + more[1]), _facts(None, **kept)
    )
    if isinstance(tight, Admitted):
        assert isinstance(loose, Admitted)
        assert set(tight.organs) <= set(loose.organs)


@given(
    recipe=st.one_of(st.text(max_size=30), st.sampled_from(["[]", "a: &a [*a]", "organs: {1: 2}", "seed: 2020-01-01"])),
    names=st.lists(st.sampled_from(["", "organs", "organs.", "organs..", "trunk", "organs.brain.x", "ü"]), unique=True),
    number=st.integers(-(2**63), 2**63 - 1),
    signature=st.one_of(st.none(), st.text(max_size=10)),
    site=st.sampled_from(["north", "south", ""]),
    answered=st.sampled_from([None, "", "00"]),
)
@settings(max_examples=40)
def test_admission_answers_anything_that_the_protocol_lets_in(
    recipe: str, names: list[str], number: int, signature: str | None, site: str, answered: str | None
) -> None:
    parameters = {name: torch.zeros(()) for name in names}
    task = _task(recipe=recipe, round=number, site=site, student=parameters, teacher={})
    task = task if signature is None else task.signed(signature)
    facts = _facts(answered, brain=5)
    verdict = admit(task, _policy(), facts)
    assert isinstance(verdict, Admitted | Repeated | Refused)
    assert admit(task, _policy(), facts) == verdict, "pure"


def test_admission_leaves_its_arguments_unchanged() -> None:
    task, policy = _task(), _policy()
    before = (task.digest(), replace(policy))
    admit(task, policy, FACTS)
    assert (task.digest(), policy) == before
