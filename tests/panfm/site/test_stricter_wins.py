"""Recipe and policy: over both, the stricter wins, in what is admitted, what is charged and what leaves."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm import recipes
from panfm.config import PrivacyConfig, Recipe
from panfm.config import PrivacyMode as Trained
from panfm.pretrain.private_scope import round_cost
from panfm.privacy.accounting import NoisySteps, epsilon_rdp
from panfm.protocol import TrainTask
from panfm.signing import public_hex, sign
from panfm.site.admission import Admitted, Refused, SiteFacts, admit
from panfm.site.audit_chain import EMPTY
from panfm.site.ledger_book import FIRST_COHORT, Book, Charge, Purpose
from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.refusals import sayable

KEY = Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32)
DELTA = 1e-5
DEMANDED: dict[str, tuple[float, float]] = {
    "privacy.noise_multiplier": (0.5, 4.0),
    "privacy.sampling_rate": (0.05, 0.5),
    "privacy.clip_norm": (0.5, 2.0),
    "pretrain.steps_per_round": (1, 20),
}


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for, in plain numbers."""

    mode: Trained
    noise: float
    rate: float
    clip: float
    steps: int

    def numbers(self) -> dict[str, float]:
        """As a policy bounds them."""
        return dict(zip(DEMANDED, (self.noise, self.rate, self.clip, self.steps), strict=True))


asked = st.builds(
    Asked,
    mode=st.sampled_from(list(Trained)),
    noise=st.sampled_from([0.6, 1.0, 4.0]),
    rate=st.sampled_from([0.05, 0.5]),
    clip=st.sampled_from([0.5, 1.0]),
    steps=st.sampled_from([1, 20]),
)
demands = st.builds(
    PrivacyDemand,
    mode=st.sampled_from(list(PrivacyMode)),
    epsilon=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    delta=st.just(DELTA),
) | st.just(PrivacyDemand(mode=PrivacyMode.none))


@st.composite
def bounds(draw: st.DrawFn) -> dict[str, Bounds]:
    chosen = draw(st.lists(st.sampled_from(list(DEMANDED)), unique=True, max_size=2))
    found = {"rounds": Bounds(most=100)}
    for name in chosen:
        limit = draw(st.floats(*DEMANDED[name]))
        found[name] = Bounds(least=limit) if draw(st.booleans()) else Bounds(most=limit)
    return found


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return Policy(
        site="north",
        coordinator_keys=(public_hex(KEY),),
        organs=("brain",),
        tasks=(TaskKind.pretrain,),
        privacy=draw(demands),
        public=draw(st.sampled_from([(), (Public.updates,), tuple(Public)])),
        bounds=draw(bounds()),
        min_subjects=1,
        min_subjects_per_organ=1,
        min_free_memory_gib=0,
    )


@cache
def _task(ask: Asked) -> TrainTask:
    recipe = Recipe(
        organs=_smoke().organs,
        model=_smoke().model,
        pretrain=replace(_smoke().pretrain, steps_per_round=ask.steps),
        privacy=PrivacyConfig(mode=ask.mode, noise_multiplier=ask.noise, sampling_rate=ask.rate, clip_norm=ask.clip),
    )
    parameters = {"trunk.x": torch.zeros(1), "organs.brain.x": torch.zeros(1)}
    text = recipes.to_yaml(recipe)
    task = TrainTask(run="r", round=1, site="north", recipe=text, student=parameters, teacher=parameters)
    return task.signed(sign(KEY, task.digest()))


@cache
def _smoke() -> Recipe:
    return recipes.recipe_of(recipes.load(["recipe=smoke"]))


@pytest.fixture(scope="module", autouse=True)
def _recipes_read_once() -> Iterator[None]:
    """Reading a recipe takes a twentieth of a second, and the same few are asked for again and again."""
    read: Callable[[str], Recipe] = cache(recipes.recipe_from_yaml)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "recipe_from_yaml", read)
        yield


def _verdict(ask: Asked, policy: Policy, spent: float | None = None) -> Admitted | Refused:
    facts = SiteFacts(
        subjects={"brain": frozenset({"a", "b"})},
        answered_digest=None,
        now=datetime(2026, 3, 4, tzinfo=UTC),
        rounds_answered=0,
        spent_epsilon=spent,
        free_memory_gib=8.0,
    )
    verdict = admit(_task(ask), policy, facts)
    assert isinstance(verdict, Admitted | Refused)
    return verdict


def _may_train(ask: Asked, policy: Policy) -> bool:
    """The two wills, side by side: neither gets less than it asks for."""
    noised, charged = ask.mode is not Trained.none, policy.privacy.epsilon is not None
    if policy.privacy.mode is PrivacyMode.dp and not noised:
        return False
    if not (noised and charged) and Public.updates not in policy.public:
        return False
    for name, bound in policy.bounds.items():
        number = ask.numbers().get(name, 1.0)
        if name.startswith("privacy.") and not noised:
            return False
        if (bound.least is not None and number < bound.least) or (bound.most is not None and number > bound.most):
            return False
    return True


@given(ask=asked, policy=policies())
@settings(max_examples=100, deadline=None)
def test_recipe_is_admitted_when_it_is_as_strict_as_the_policy_in_everything(ask: Asked, policy: Policy) -> None:
    verdict = _verdict(ask, policy)
    assert isinstance(verdict, Admitted) == _may_train(ask, policy)
    if isinstance(verdict, Refused):
        assert (verdict.code, verdict.reason) in sayable(), "both sides see why"
        return
    cost, own = round_cost(verdict.recipe), verdict.recipe.privacy
    assert (own.mode, own.clip_norm) == (ask.mode, ask.clip), "and the recipe is trained as it stands, or not at all"
    assert cost == NoisySteps(noise_multiplier=ask.noise, sampling_rate=ask.rate, steps=ask.steps)


def _book_after(rounds: list[Asked], budget_epsilon: float) -> tuple[Book, list[bool]]:
    """A ledger that took what fits of these rounds, one after the other."""
    book, taken = Book(head=EMPTY), []
    for number, ask in enumerate(rounds, start=1):
        cost = NoisySteps(noise_multiplier=ask.noise, sampling_rate=ask.rate, steps=ask.steps)
        taken.append(book.spent_after([FIRST_COHORT], cost, DELTA) <= budget_epsilon)
        if taken[-1]:
            purpose = Purpose(run="r", round=number, task_digest="")
            charge = Charge(line=number, time="", purpose=purpose, steps=cost, cohorts=(FIRST_COHORT,))
            book = replace(book, charges=(*book.charges, charge))
    return book, taken


@given(rounds=st.lists(asked, min_size=1, max_size=6), epsilon=st.sampled_from([0.5, 1.0, 3.0, 8.0]))
@settings(max_examples=30, deadline=None)
def test_whatever_recipes_ask_for_the_budget_is_the_policys(rounds: list[Asked], epsilon: float) -> None:
    book, taken = _book_after(rounds, epsilon)
    assert book.spent(FIRST_COHORT, DELTA) <= epsilon
    for noisier in ([replace(ask, noise=2 * ask.noise) for ask in rounds], [replace(r, steps=1) for r in rounds]):
        whole = epsilon_rdp(
            [NoisySteps(noise_multiplier=r.noise, sampling_rate=r.rate, steps=r.steps) for r in noisier], DELTA
        )
        assert whole > epsilon or all(_book_after(noisier, epsilon)[1])
    if all(taken):
        assert all(_book_after(rounds, 2 * epsilon)[1]), "a laxer policy takes no less"


@given(ask=asked, policy=policies(), spent=st.sampled_from([None, 0.0, 0.4, 1.0, 9.0]))
@settings(max_examples=60, deadline=None)
def test_what_is_spent_closes_the_door_to_noise_and_opens_none_to_what_has_none(
    ask: Asked, policy: Policy, spent: float | None
) -> None:
    before, after = _verdict(ask, policy), _verdict(ask, policy, spent)
    budget = policy.privacy.budget
    out = ask.mode is not Trained.none and budget is not None and spent is not None and spent >= budget.epsilon
    assert isinstance(after, Admitted) == (isinstance(before, Admitted) and not out)
