"""Admission is pure and total, agrees with a table read from top to bottom, and a stricter policy never admits more."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from panfm import recipes
from panfm.config import Recipe
from panfm.protocol import (
    PROTOCOL_VERSION,
    EvaluateTask,
    ParcelRequest,
    PrivacySpent,
    SiteUpdate,
    TaskParcel,
    TrainTask,
)
from panfm.signing import public_hex, sign
from panfm.site.admission import (
    LONGEST_RECIPE,
    Admitted,
    Refused,
    Repeated,
    SiteFacts,
    admit,
    admit_parcel,
    offered_organs,
)
from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.refusals import sayable

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3)]
"""Of two coordinators and of a stranger."""
PUBLIC = [public_hex(key) for key in KEYS]
ORGANS = ("brain", "heart", "liver")
NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
NO_PRIVACY = PrivacyDemand(mode=PrivacyMode.none)
DP = PrivacyDemand(mode=PrivacyMode.dp, epsilon=3.0, delta=1e-6)
BUDGET_ONLY = PrivacyDemand(mode=PrivacyMode.none, epsilon=3.0, delta=1e-6)


@cache
def _recipe(rounds: int = 2, min_sites: int = 2, steps: int = 2, mode: str = "none") -> str:
    chosen = [f"rounds={rounds}", f"federation.min_sites_per_group={min_sites}", f"pretrain.steps_per_round={steps}"]
    chosen.append(f"privacy.mode={mode}")
    return recipes.to_yaml(recipes.recipe_of(recipes.load(["recipe=smoke", *chosen])))


@cache
def _digest(text: str) -> str:
    return recipes.digest(recipes.recipe_from_yaml(text))


def _task(recipe: str | None = None, organs: tuple[str, ...] = ORGANS, signer: int = 0, **changes: Any) -> TrainTask:
    names = ["trunk.x", "heads.x", *(f"organs.{organ}.x" for organ in organs)]
    parameters = {name: torch.zeros(1) for name in names}
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "recipe": recipe or _recipe()}
    task = TrainTask(**(values | {"student": parameters, "teacher": parameters} | changes))
    return task.signed(sign(KEYS[signer], task.digest()))


def _policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {
        "site": "north",
        "coordinator_keys": (PUBLIC[0],),
        "organs": ORGANS,
        "tasks": (TaskKind.pretrain,),
        "privacy": NO_PRIVACY,
        "public": (Public.updates,),
        "bounds": {"rounds": Bounds(most=100)},
        "min_subjects": 1,
        "min_subjects_per_organ": 1,
    }
    return Policy(**(values | changes))


def _facts(subjects: dict[str, int] | None = None, **changes: Any) -> SiteFacts:
    held = {"brain": 5, "heart": 3} if subjects is None else subjects
    values: dict[str, Any] = {
        "subjects": {organ: frozenset(f"s{i}" for i in range(number)) for organ, number in held.items()},
        "answered_digest": None,
        "now": NOON,
        "rounds_answered": 0,
        "spent_epsilon": None,
        "free_memory_gib": 8.0,
    }
    return SiteFacts(**(values | changes))


def test_what_is_offered_known_and_sent_is_trained_in_the_recipes_order() -> None:
    verdict = admit(_task(), _policy(), _facts({"liver": 2, "brain": 5, "spleen": 9}))
    assert isinstance(verdict, Admitted)
    assert verdict.organs == ("brain", "liver")
    assert verdict.recipe == recipes.recipe_from_yaml(_recipe())
    fewer = admit(_task(organs=("liver",)), _policy(), _facts({"liver": 2, "brain": 5}))
    assert isinstance(fewer, Admitted)
    assert fewer.organs == ("liver",)


@pytest.mark.parametrize(
    ("task", "policy", "facts", "code"),
    [
        ({"protocol_version": PROTOCOL_VERSION + 1}, {}, {}, "protocol"),
        ({"signer": 2}, {"coordinator_keys": (PUBLIC[0], PUBLIC[1])}, {}, "signature"),
        ({}, {"coordinator_keys": (PUBLIC[1],)}, {}, "signature"),
        ({"site": "south"}, {}, {}, "wrong_site"),
        ({"recipe": "rounds: many"}, {}, {}, "recipe"),
        ({"recipe": "recipe: ${oc.env:HOME}"}, {}, {}, "recipe"),
        ({"round": 0}, {}, {}, "wrong_round"),
        ({"round": 3}, {}, {}, "wrong_round"),
        ({}, {}, {"answered_digest": "00" * 32}, "round_answered_otherwise"),
        ({}, {"tasks": (TaskKind.evaluate,)}, {}, "task_not_allowed"),
        ({}, {"privacy": DP}, {}, "privacy"),
        ({}, {"privacy": DP}, {"spent_epsilon": 2.9}, "privacy"),
        ({}, {"privacy": DP}, {"spent_epsilon": 3.0}, "privacy"),
        ({"mode": "dp_full"}, {"privacy": DP}, {"spent_epsilon": 3.0}, "budget_spent"),
        ({"mode": "dp_adapters"}, {"privacy": BUDGET_ONLY}, {"spent_epsilon": 3.1}, "budget_spent"),
        ({"mode": "dp_full"}, {"public": ()}, {}, "no_budget"),
        ({}, {"privacy": BUDGET_ONLY, "public": ()}, {}, "updates_not_public"),
        ({}, {"bounds": {"privacy.noise_multiplier": Bounds(most=9.0)}}, {}, "recipe_out_of_bounds"),
        ({"mode": "dp_full"}, {"bounds": {"privacy.noise_multiplier": Bounds(least=9.0)}}, {}, "recipe_out_of_bounds"),
        ({}, {"public": (Public.counts, Public.metrics)}, {}, "updates_not_public"),
        ({}, {"bounds": {}}, {}, "recipe_not_approved"),
        ({}, {"approved_recipes": ("00" * 32,)}, {}, "recipe_not_approved"),
        ({}, {"bounds": {"rounds": Bounds(most=1)}}, {}, "recipe_out_of_bounds"),
        ({}, {"bounds": {"pretrain.learning_rate": Bounds(least=1.0)}}, {}, "recipe_out_of_bounds"),
        ({}, {"min_sites_per_group": 3}, {}, "min_sites_per_group"),
        ({}, {"hours": ("12:01-11:59",)}, {}, "hours"),
        ({}, {"rounds_per_day": 5}, {"rounds_answered": 5}, "rounds_per_day"),
        ({}, {"min_free_memory_gib": 8.1}, {}, "memory"),
        ({}, {}, {"free_memory_gib": None}, "memory"),
        ({}, {}, {"free_memory_gib": float("nan")}, "memory"),
        ({}, {}, {"subjects": {"spleen": 4}}, "no_organ"),
        ({}, {}, {"subjects": {}}, "no_organ"),
        ({}, {"organs": ("liver",)}, {}, "no_organ"),
        ({}, {"min_subjects": 6}, {}, "min_subjects"),
        ({}, {"min_subjects_per_organ": 6}, {}, "min_subjects"),
    ],
)
def test_each_reason_against_a_task(
    task: dict[str, Any], policy: dict[str, Any], facts: dict[str, Any], code: str
) -> None:
    mode = task.pop("mode", "none")
    verdict = admit(_task(**({"recipe": _recipe(mode=mode)} | task)), _policy(**policy), _facts(**facts))
    assert isinstance(verdict, Refused)
    assert verdict.code == code
    assert (verdict.code, verdict.reason) in sayable()


def test_reason_names_the_setting_at_fault_and_the_note_its_value() -> None:
    verdict = admit(_task(), _policy(bounds={"pretrain.steps_per_round": Bounds(most=1)}), _facts())
    assert isinstance(verdict, Refused)
    assert verdict.reason == "the recipe's pretrain.steps_per_round is outside the bounds of the site's policy"
    assert verdict.note == "pretrain.steps_per_round is 2"


def test_recipe_that_is_not_approved_is_named_by_its_digest_for_the_site_only() -> None:
    verdict = admit(_task(), _policy(bounds={}), _facts())
    assert isinstance(verdict, Refused)
    assert _digest(_recipe()) in verdict.note
    approved = _policy(bounds={}, approved_recipes=(_digest(_recipe()),))
    assert isinstance(admit(_task(), approved, _facts()), Admitted)
    other = admit(_task(recipe=_recipe(steps=3)), approved, _facts())
    assert isinstance(other, Refused)
    assert other.code == "recipe_not_approved"


def test_subjects_are_counted_once_and_only_those_that_would_train() -> None:
    held = {"brain": frozenset("ab"), "heart": frozenset("bc"), "spleen": frozenset("defgh")}
    overlapping = replace(_facts(), subjects=held)
    assert isinstance(admit(_task(), _policy(min_subjects=3), overlapping), Admitted)
    assert isinstance(admit(_task(), _policy(min_subjects=4), overlapping), Refused)


def test_organ_with_too_few_subjects_is_neither_offered_nor_trained() -> None:
    policy, facts = _policy(min_subjects_per_organ=4), _facts({"brain": 5, "heart": 3, "liver": 4, "spleen": 9})
    assert offered_organs(policy, facts.subjects) == ("brain", "liver")
    verdict = admit(_task(), policy, facts)
    assert isinstance(verdict, Admitted)
    assert verdict.organs == ("brain", "liver")


def test_same_task_again_is_neither_trained_nor_refused() -> None:
    task = _task()
    again = _facts(answered_digest=task.digest())
    assert admit(task, _policy(), again) == Repeated()
    # Even where the policy has become stricter since: the answer was given, and nothing is trained. The egress gate, which it
    # passes again, goes by today's policy.
    assert admit(task, _policy(min_subjects=100, hours=("00:00-00:01",)), again) == Repeated()


def test_reasons_hold_no_count_and_no_name() -> None:
    """What a refusal says travels to the coordinator."""
    facts = replace(_facts(), subjects={"brain": frozenset({"sub-31415"})})
    verdict = admit(_task(), _policy(min_subjects=27_182), facts)
    assert isinstance(verdict, Refused)
    assert not any(secret in verdict.reason for secret in ("31415", "27182", "27_182", "1 "))


@pytest.mark.parametrize(
    "recipe",
    [
        "a: &a [*a]",
        "a: &a [1, 1]\nb: [*a, *a]",
        "recipe: !!python/name:os.system",
        "[" * 20_000,
        "rounds: 1" + "0" * LONGEST_RECIPE,
        "pretrain: {learning_rate: 1" + "0" * 400 + "}",
        "rounds: .inf",
        "organs: {1: 2}",
        "data: /srv/scans",
        "device: cuda",
        "privacy: {epsilon: 3.0}",
        "privacy: {mode: dp_full, noise_multiplier: 0}",
        "privacy: {mode: dp_full}\npretrain: {sampler: balanced}",
    ],
    ids=lambda recipe: str(recipe)[:20],
)
def test_recipe_that_holds_more_than_values_is_not_read(recipe: str) -> None:
    verdict = admit(_task(recipe=recipe), _policy(), _facts())
    assert isinstance(verdict, Refused)
    assert verdict.code == "recipe"


def test_recipe_has_no_word_for_a_path_a_device_or_a_budget() -> None:
    """They belong to the hospital; a recipe's free words are its own name, which nobody opens, and one of its own probes."""

    def walk(settings: object, path: str) -> Iterator[tuple[str, object]]:
        assert is_dataclass(settings)
        for f in fields(settings):
            value = getattr(settings, f.name)
            below = walk(value, f"{path}{f.name}.") if is_dataclass(value) else [(f"{path}{f.name}", value)]
            yield from below

    recipe = recipes.recipe_from_yaml(_recipe())
    words = dict(walk(recipe, ""))
    for organ, grid in recipe.organs.items():
        words |= walk(grid, f"organs.{organ}.")
    assert [name for name, value in words.items() if isinstance(value, str)] == [
        "recipe",
        "federation.evaluation.best_by",
    ]
    foreign = ("path", "folder", "dir", "file", "url", "host", "device", "cuda", "budget", "epsilon", "delta", "sigma")
    parts = {part for name in words for dotted in name.split(".") for part in dotted.split("_")}
    assert parts & {*foreign, "upload", "dp", "key"} == {"delta"}, "federation.max_delta_norm bounds an update"


def test_facts_need_a_clock_with_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        _facts(now=datetime(2026, 3, 4))


# The table: one line a reason, read from top to bottom. It knows nothing of TrainTask, Policy and SiteFacts.


@dataclass(frozen=True)
class Case:
    """One question, in plain values."""

    version: int
    signer: int
    trusted: frozenset[int]
    site: str
    round: int
    rounds: int
    steps: int
    min_sites: int
    answered: str
    kinds: frozenset[TaskKind]
    mode: str
    demand: str
    spent: float | None
    public: frozenset[Public]
    approved: frozenset[str]
    most_rounds: int | None
    least_steps: int | None
    most_steps: int | None
    least_noise: float | None
    ask_min_sites: int
    start: int
    length: int
    hour: int
    offset: int
    answered_rounds: int
    rounds_per_day: int
    free: float | None
    need: float
    held: tuple[tuple[str, int], ...]
    offered: tuple[str, ...]
    sent: tuple[str, ...]
    min_subjects: int
    min_per_organ: int


def _big_enough(case: Case) -> list[str]:
    held = dict(case.held)
    common = [organ for organ in ORGANS if organ in held and organ in case.offered and organ in case.sent]
    return [organ for organ in common if held[organ] >= case.min_per_organ]


def _known_and_sent(case: Case) -> bool:
    return any(organ in case.offered and organ in case.sent for organ, _ in case.held if organ in ORGANS)


def _bounded(case: Case) -> bool:
    return any(bound is not None for bound in (case.most_rounds, case.least_steps, case.most_steps, case.least_noise))


TABLE: list[tuple[str, Callable[[Case], bool]]] = [
    ("protocol", lambda c: c.version != PROTOCOL_VERSION),
    ("signature", lambda c: c.signer not in c.trusted),
    ("wrong_site", lambda c: c.site != "north"),
    ("wrong_round", lambda c: c.round < 1 or c.round > c.rounds),
    ("repeated", lambda c: c.answered == "this"),
    ("round_answered_otherwise", lambda c: c.answered == "other"),
    ("task_not_allowed", lambda c: TaskKind.pretrain not in c.kinds),
    ("no_budget", lambda c: c.mode != "none" and c.demand == "none" and Public.updates not in c.public),
    ("budget_spent", lambda c: c.mode != "none" != c.demand and c.spent is not None and c.spent >= 3.0),
    ("privacy", lambda c: c.mode == "none" and c.demand == "dp"),
    ("updates_not_public", lambda c: c.mode == "none" and Public.updates not in c.public),
    ("recipe_not_approved", lambda c: not c.approved and not _bounded(c)),
    ("recipe_not_approved", lambda c: c.approved == {"other"}),
    ("recipe_out_of_bounds", lambda c: c.most_rounds is not None and c.rounds > c.most_rounds),
    ("recipe_out_of_bounds", lambda c: c.least_steps is not None and c.steps < c.least_steps),
    ("recipe_out_of_bounds", lambda c: c.most_steps is not None and c.steps > c.most_steps),
    # The recipe's noise multiplier is 1, and 0 where it has no privacy.
    ("recipe_out_of_bounds", lambda c: c.least_noise is not None and (c.mode != "none") < c.least_noise),
    ("min_sites_per_group", lambda c: c.ask_min_sites > c.min_sites),
    ("hours", lambda c: c.hour not in [(c.start + passed) % 24 for passed in range(c.length)]),
    ("rounds_per_day", lambda c: c.answered_rounds >= c.rounds_per_day),
    ("memory", lambda c: c.need > 0 and (c.free is None or c.free < c.need)),
    ("no_organ", lambda c: not _known_and_sent(c)),
    # Subjects are numbered from 0 in every organ, so the largest organ holds everybody.
    ("min_subjects", lambda c: max([dict(c.held)[o] for o in _big_enough(c)], default=0) < c.min_subjects),
]


def oracle(case: Case) -> str | list[str]:
    """The code of the first line that speaks against the case, or the organs to train."""
    return next((code for code, speaks in TABLE if speaks(case)), _big_enough(case))


def _asked(case: Case) -> tuple[TrainTask, Policy, SiteFacts]:
    text = _recipe(case.rounds, case.min_sites, case.steps, case.mode)
    task = _task(text, case.sent, case.signer, protocol_version=case.version, site=case.site, round=case.round)
    bounds = {"rounds": Bounds(most=case.most_rounds)} if case.most_rounds is not None else {}
    if case.least_steps is not None or case.most_steps is not None:
        bounds["pretrain.steps_per_round"] = Bounds(least=case.least_steps, most=case.most_steps)
    if case.least_noise is not None:
        bounds["privacy.noise_multiplier"] = Bounds(least=case.least_noise)
    end = (case.start + case.length) % 24
    whole_day = case.length == 24
    policy = _policy(
        coordinator_keys=tuple(PUBLIC[number] for number in sorted(case.trusted)),
        tasks=tuple(case.kinds),
        privacy={"none": NO_PRIVACY, "budget": BUDGET_ONLY, "dp": DP}[case.demand],
        public=tuple(case.public),
        approved_recipes=tuple({"this": _digest(text), "other": "00" * 32}[which] for which in sorted(case.approved)),
        bounds=bounds,
        min_sites_per_group=case.ask_min_sites,
        hours=("00:00-24:00",) if whole_day else (f"{case.start:02}:00-{end:02}:00",),
        rounds_per_day=case.rounds_per_day,
        min_free_memory_gib=case.need,
        organs=case.offered,
        min_subjects=case.min_subjects,
        min_subjects_per_organ=case.min_per_organ,
    )
    now = datetime(2026, 3, 4, case.hour, 30, tzinfo=UTC).astimezone(timezone(timedelta(hours=case.offset)))
    facts = _facts(
        dict(case.held),
        answered_digest={"": None, "this": task.digest(), "other": "ab" * 32}[case.answered],
        now=now,
        rounds_answered=case.answered_rounds,
        spent_epsilon=case.spent,
        free_memory_gib=case.free,
    )
    return task, policy, facts


def _mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    """Usually what lets a task pass, so that each line of the table is reached now and then."""
    return st.sampled_from([usual] * 8 + list(others))


ordered = st.builds(sorted, st.tuples(st.integers(1, 3), st.integers(1, 3)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    low, high = draw(ordered)
    return Case(
        version=draw(_mostly(PROTOCOL_VERSION, PROTOCOL_VERSION + 1)),
        signer=draw(_mostly(0, 1, 2)),
        trusted=draw(_mostly(frozenset({0}), frozenset({1}), frozenset({0, 1}))),
        site=draw(_mostly("north", "south")),
        round=draw(_mostly(1, 0, 2, 3)),
        rounds=draw(st.sampled_from([1, 2])),
        steps=draw(st.sampled_from([1, 2, 3])),
        min_sites=draw(_mostly(3, 1, 2)),
        answered=draw(_mostly("", "this", "other")),
        kinds=draw(_mostly(frozenset({TaskKind.pretrain}), frozenset({TaskKind.evaluate}), frozenset(TaskKind))),
        mode=draw(st.sampled_from(["none", "none", "dp_adapters", "dp_full"])),
        demand=draw(st.sampled_from(["none", "none", "budget", "dp"])),
        spent=draw(st.sampled_from([None, 0.0, 2.9, 3.0, 4.0])),
        public=draw(_mostly(frozenset(Public), frozenset({Public.metrics}), frozenset({Public.updates}))),
        approved=draw(_mostly(frozenset(), frozenset({"this"}), frozenset({"other"}), frozenset({"this", "other"}))),
        most_rounds=draw(_mostly(2, 1, None)),
        least_steps=draw(_mostly(None, low)),
        most_steps=draw(_mostly(None, high)),
        least_noise=draw(_mostly(None, 0.5, 1.5)),
        ask_min_sites=draw(_mostly(1, 2, 3)),
        start=draw(st.integers(0, 23)),
        length=draw(_mostly(24, *range(1, 24))),
        hour=draw(st.integers(0, 23)),
        offset=draw(st.integers(-12, 14)),
        answered_rounds=draw(_mostly(0, 1, 2)),
        rounds_per_day=draw(st.integers(1, 3)),
        free=draw(_mostly(2.0, 0.5, None)),
        need=draw(_mostly(0.0, 1.0, 2.0, 2.5)),
        held=tuple(draw(st.dictionaries(st.sampled_from([*ORGANS, "spleen"]), st.integers(1, 6), max_size=4)).items()),
        offered=draw(_mostly(ORGANS, ("brain",), ("spleen", "heart"))),
        sent=draw(_mostly(ORGANS, ("brain", "heart"), ("liver",))),
        min_subjects=draw(_mostly(1, 3, 7)),
        min_per_organ=draw(_mostly(1, 3, 6)),
    )


@pytest.fixture(scope="module", autouse=True)
def _recipes_read_once() -> Iterator[None]:
    """Reading a recipe takes a twentieth of a second, and the same few are asked for some thousand times."""
    read: Callable[[str], Recipe] = cache(recipes.recipe_from_yaml)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "recipe_from_yaml", read)
        yield


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_admission_agrees_with_the_table(case: Case) -> None:
    task, policy, facts = _asked(case)
    verdict = admit(task, policy, facts)
    expected = oracle(case)
    if isinstance(verdict, Admitted):
        assert list(verdict.organs) == expected
    elif isinstance(verdict, Repeated):
        assert expected == "repeated"
    else:
        assert verdict.code == expected
        assert (verdict.code, verdict.reason) in sayable()
    assert admit(task, policy, facts) == verdict, "deterministic"


def test_each_line_of_the_table_can_speak_and_none_must() -> None:
    """Else agreement would prove little: the cases reach every line."""
    passing = Case(
        version=PROTOCOL_VERSION, signer=0, trusted=frozenset({0}), site="north", round=1, rounds=2, steps=2, min_sites=3,
        answered="", kinds=frozenset({TaskKind.pretrain}), mode="none", demand="none", spent=None, public=frozenset(Public),
        approved=frozenset(), most_rounds=2, least_steps=None, most_steps=None, least_noise=None, ask_min_sites=1, start=0,
        length=24, hour=12, offset=0, answered_rounds=0, rounds_per_day=1, free=2.0, need=0.0, held=(("brain", 5),),
        offered=ORGANS, sent=ORGANS, min_subjects=1, min_per_organ=1,
    )  # fmt: skip
    assert oracle(passing) == ["brain"]
    changes: list[dict[str, Any]] = [
        {"version": 0}, {"signer": 2}, {"site": "s"}, {"round": 3}, {"answered": "this"}, {"answered": "other"},
        {"kinds": frozenset({TaskKind.evaluate})}, {"mode": "dp_full", "public": frozenset()},
        {"mode": "dp_full", "demand": "budget", "spent": 3.0}, {"demand": "dp"}, {"public": frozenset()},
        {"most_rounds": None}, {"approved": frozenset({"other"})}, {"most_rounds": 1}, {"least_steps": 3},
        {"most_steps": 1}, {"least_noise": 0.5}, {"ask_min_sites": 4}, {"length": 12}, {"answered_rounds": 1},
        {"need": 2.5}, {"held": ()}, {"min_subjects": 6},
    ]  # fmt: skip
    for (code, _), change in zip(TABLE, changes, strict=True):
        case = replace(passing, **change)
        assert oracle(case) == code
        verdict = admit(*_asked(case))
        assert isinstance(verdict, Repeated) or (isinstance(verdict, Refused) and verdict.code == code)


# Stricter policies: each step forbids more and allows nothing new.


def _tighter_bounds(policy: Policy, name: str, bounds: Bounds) -> dict[str, Bounds]:
    """A bound more, or the narrower of two; where nothing is approved at all, a bound would open the door."""
    if not policy.bounds and not policy.approved_recipes:
        return {}
    old = policy.bounds.get(name, bounds)
    least = max((b.least for b in (old, bounds) if b.least is not None), default=None)
    most = min((b.most for b in (old, bounds) if b.most is not None), default=None)
    if least is not None and most is not None and least > most:
        return policy.bounds
    return policy.bounds | {name: Bounds(least=least, most=most)}


def _without(values: tuple[Any, ...], value: object) -> tuple[Any, ...]:
    """One less, but never none, which is no policy."""
    return tuple(kept for kept in values if kept != value) or values


def _lets_noise_out(policy: Policy) -> bool:
    """Where nothing of training leaves, a budget would open the door."""
    return policy.privacy.budget is not None or Public.updates in policy.public


@st.composite
def steps(draw: st.DrawFn) -> Callable[[Policy], Policy]:
    number, organ = draw(st.integers(0, 7)), draw(st.sampled_from(ORGANS))
    name = draw(st.sampled_from(["rounds", "pretrain.steps_per_round", "privacy.noise_multiplier"]))
    bounds = Bounds(least=number) if draw(st.booleans()) else Bounds(most=number)
    ways: list[Callable[[Policy], Policy]] = [
        lambda p: replace(p, coordinator_keys=_without(p.coordinator_keys, PUBLIC[number % 2])),
        lambda p: replace(p, organs=_without(p.organs, organ)),
        lambda p: replace(p, tasks=_without(p.tasks, TaskKind.pretrain)),
        lambda p: replace(p, privacy=DP if _lets_noise_out(p) else p.privacy),
        lambda p: replace(p, privacy=replace(p.privacy, epsilon=2.5) if p.privacy.budget else p.privacy),
        lambda p: replace(p, public=()),
        lambda p: replace(p, bounds=_tighter_bounds(p, name, bounds)),
        lambda p: replace(p, approved_recipes=p.approved_recipes or (("00" * 32,) if p.bounds else ())),
        lambda p: replace(p, approved_recipes=_without(p.approved_recipes, "00" * 32)),
        lambda p: replace(p, min_subjects=p.min_subjects + number),
        lambda p: replace(p, min_subjects_per_organ=p.min_subjects_per_organ + number),
        lambda p: replace(p, min_sites_per_group=p.min_sites_per_group + number),
        lambda p: replace(p, rounds_per_day=max(1, p.rounds_per_day - number)),
        lambda p: replace(p, hours=("11:00-13:00",) if p.hours == ("00:00-24:00",) else p.hours),
        lambda p: replace(p, min_free_memory_gib=p.min_free_memory_gib + number / 2),
    ]
    return draw(st.sampled_from(ways))


@given(case=cases(), stricter=st.lists(steps(), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_stricter_policy_never_admits_more(case: Case, stricter: list[Callable[[Policy], Policy]]) -> None:
    task, loose, facts = _asked(case)
    tight = loose
    for step in stricter:
        tight = step(tight)
    before, after = admit(task, loose, facts), admit(task, tight, facts)
    if isinstance(after, Repeated):
        assert isinstance(before, Repeated)
    if isinstance(after, Admitted):
        assert isinstance(before, Admitted)
        assert set(after.organs) <= set(before.organs)


odd_recipes = st.sampled_from(["[]", "a: &a [*a]", "organs: {1: 2}", "seed: 2020-01-01", "rounds: ???", "organs: ???"])


@given(
    recipe=st.text(max_size=30) | odd_recipes,
    names=st.lists(st.sampled_from(["", "organs", "organs.", "organs..", "trunk", "organs.brain.x", "ü"]), unique=True),
    number=st.integers(-(2**63), 2**63 - 1),
    signature=st.none() | st.text(max_size=10),
    site=st.sampled_from(["north", "south", ""]),
    answered=st.sampled_from([None, "", "00"]),
    now=st.datetimes(
        timezones=st.just(UTC)
        | st.builds(timezone, st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes)))
    ),
    policy=st.sampled_from([_policy(), _policy(time_zone="Pacific/Kiritimati"), _policy(min_free_memory_gib=3.0)]),
    free=st.none() | st.floats(),
)
@settings(max_examples=50, deadline=None)
def test_admission_answers_anything_that_the_protocol_lets_in(
    recipe: str,
    names: list[str],
    number: int,
    signature: str | None,
    site: str,
    answered: str | None,
    now: datetime,
    policy: Policy,
    free: float | None,
) -> None:
    parameters = {name: torch.zeros(()) for name in names}
    task = _task(recipe, round=number, site=site, student=parameters, teacher={})
    task = task if signature is None else task.signed(signature)
    facts = _facts({"brain": 5}, answered_digest=answered, now=now, free_memory_gib=free)
    verdict = admit(task, policy, facts)
    assert isinstance(verdict, Admitted | Repeated | Refused)
    assert admit(task, policy, facts) == verdict, "pure"


def test_admission_leaves_its_arguments_unchanged() -> None:
    task, policy = _task(), _policy()
    before = (task.digest(), replace(policy))
    admit(task, policy, _facts())
    assert (task.digest(), policy) == before


# Parcels: of a task to come, and of an answer given.


def _parcel(
    kind: type[TaskParcel] | type[ParcelRequest], signer: int = 0, **changes: Any
) -> TaskParcel | ParcelRequest:
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "sha256": "ab" * 32}
    asked = kind(**(values | changes))
    return asked.signed(sign(KEYS[signer], asked.digest()))


CHARGED = SiteUpdate(
    run="r", round=1, site="north", task_digest="", deltas={}, num_subjects=1, organ_subjects={}, num_steps=1, metrics=None,
    privacy=PrivacySpent(epsilon=1.0, delta=1e-6, budget=3.0, ledger_head="ab" * 32 + ":3"),
)  # fmt: skip


@pytest.mark.parametrize("kind", [TaskParcel, ParcelRequest])
def test_parcels_are_for_the_policys_coordinators(kind: type[TaskParcel] | type[ParcelRequest]) -> None:
    def code(asked: TaskParcel | ParcelRequest, policy: Policy) -> str:
        refused = admit_parcel(asked, policy, replace(CHARGED, privacy=None))
        return refused.code if refused else ""

    good = _parcel(kind)
    assert code(good, _policy()) == ""
    assert code(_parcel(kind, signer=2), _policy()) == "signature"
    assert code(_parcel(kind, signer=1), _policy(coordinator_keys=tuple(PUBLIC[:2]))) == ""
    assert code(_parcel(kind, site="south"), _policy()) == "wrong_site"
    assert code(_parcel(kind, protocol_version=PROTOCOL_VERSION + 1), _policy()) == "protocol"
    for changes in ({"run": "s"}, {"round": 2}, {"sha256": "cd" * 32}, {"signature": ""}, {"signature": "zz"}):
        assert code(replace(good, **changes), _policy()) == "signature", changes
    handed_out = kind is ParcelRequest
    assert code(good, _policy(public=())) == ("updates_not_public" if handed_out else "")
    assert code(good, _policy(privacy=DP)) == ("privacy" if handed_out else "")
    for policy in (_policy(public=()), _policy(privacy=DP)):
        assert admit_parcel(good, policy, CHARGED) is None, "noised and charged"


def test_a_signature_is_good_for_one_kind_of_message() -> None:
    kept, wanted = (kind(run="r", round=1, site="north", sha256="ab" * 32) for kind in (TaskParcel, ParcelRequest))
    assert kept.digest() != wanted.digest()
    borrowed = wanted.signed(sign(KEYS[0], kept.digest()))
    assert admit_parcel(borrowed, _policy()) == Refused(code="signature")


def _evaluation(**changes: Any) -> EvaluateTask:
    given = _task()
    values: dict[str, Any] = {"run": "r", "round": 1, "site": "north", "recipe": _recipe()}
    task = EvaluateTask(**(values | {"student": given.student, "teacher": given.teacher} | changes))
    return task.signed(sign(KEYS[0], task.digest()))


def _judge(**changes: Any) -> Policy:
    return _policy(**({"tasks": (TaskKind.evaluate,), "public": (Public.metrics,)} | changes))


@pytest.mark.parametrize("privacy", [NO_PRIVACY, DP])
def test_an_evaluation_needs_public_metrics_and_nothing_of_updates(privacy: PrivacyDemand) -> None:
    verdict = admit(_evaluation(), _judge(privacy=privacy), _facts())
    assert isinstance(verdict, Admitted)
    assert verdict.organs == ("brain", "heart")


@pytest.mark.parametrize(
    ("task", "policy", "facts", "code"),
    [
        ({"site": "south"}, {}, {}, "wrong_site"),
        ({"round": 3}, {}, {}, "wrong_round"),
        ({}, {}, {"answered_digest": "00" * 32}, "round_answered_otherwise"),
        ({}, {"tasks": (TaskKind.pretrain,)}, {}, "task_not_allowed"),
        ({}, {"public": (Public.updates, Public.counts)}, {}, "metrics_not_public"),
        ({}, {}, {"subjects": {}}, "none_held_out"),
        ({}, {}, {"subjects": {"brain": 0}}, "none_held_out"),
        ({}, {"bounds": {}}, {}, "recipe_not_approved"),
        ({}, {"min_sites_per_group": 3}, {}, "min_sites_per_group"),
        ({}, {"rounds_per_day": 5}, {"rounds_answered": 5}, "rounds_per_day"),
        ({}, {"min_subjects": 6}, {}, "min_subjects"),
    ],
)
def test_each_reason_against_an_evaluation(
    task: dict[str, Any], policy: dict[str, Any], facts: dict[str, Any], code: str
) -> None:
    verdict = admit(_evaluation(**task), _judge(**policy), _facts(**facts))
    assert isinstance(verdict, Refused)
    assert verdict.code == code
    assert (verdict.code, verdict.reason) in sayable()


def test_a_signature_under_one_kind_of_task_is_none_under_the_other() -> None:
    """A site that evaluates and does not train must not be made to train by a signed evaluation."""
    evaluation = _evaluation()
    assert evaluation.digest() != _task().digest()
    turned = replace(_task(), signature=evaluation.signature)
    verdict = admit(turned, _policy(), _facts())
    assert isinstance(verdict, Refused)
    assert verdict.code == "signature"
