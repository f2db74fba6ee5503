"""What a policy may say, what it means where it says nothing, and its arithmetic of hours and bounds."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime, time, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm import recipes
from panfm.config import Recipe
from panfm.errors import ConfigError
from panfm.privacy.accounting import Budget
from panfm.site.policy import (
    Bounds,
    Policy,
    PolicyError,
    PrivacyDemand,
    PrivacyMode,
    Public,
    TaskKind,
    bounded_names,
    numbers_of,
    within_hours,
)

KEY = "ab" * 32


def _policy(**changes: Any) -> Policy:
    said: dict[str, Any] = {
        "site": "north",
        "coordinator_keys": (KEY,),
        "organs": ("brain",),
        "tasks": (TaskKind.pretrain,),
        "privacy": PrivacyDemand(mode=PrivacyMode.none),
    }
    return Policy(**(said | changes))


def test_what_is_not_said_is_not_allowed() -> None:
    """Each default, beside what it means; a new field needs a line here."""
    silent = _policy()
    defaults = {f.name: getattr(silent, f.name) for f in fields(Policy)}
    for said in ("site", "coordinator_keys", "organs", "tasks", "privacy"):
        del defaults[said]
    assert defaults == {
        "public": (),  # nothing leaves as it is
        "nominal_subjects": 1,
        "approved_recipes": (),  # together with no bounds: no recipe passes
        "bounds": {},
        "approved_bundles": (),  # no code runs
        "min_subjects": 10,
        "min_subjects_per_organ": 10,
        "min_sites_per_group": 1,
        "rounds_per_day": 24,
        "hours": ("00:00-24:00",),
        "time_zone": "UTC",
        "device": "cpu",
        "min_free_memory_gib": 1.0,
        "loader_threads": 1,
    }
    with pytest.raises(TypeError):
        Policy()  # type: ignore[call-arg]  # what opens a door has no default


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"site": "../north"}, "site"),
        ({"site": ""}, "site"),
        ({"site": "n" * 65}, "site"),
        ({"site": "north\n"}, "site"),
        ({"coordinator_keys": ()}, "coordinator_keys"),
        ({"coordinator_keys": ("ab",)}, "coordinator_keys"),
        ({"coordinator_keys": (KEY, KEY.upper())}, "coordinator_keys"),
        ({"coordinator_keys": (KEY, KEY)}, "coordinator_keys"),
        ({"organs": ()}, "organs"),
        ({"organs": ("Brain",)}, "organs"),
        ({"organs": ("trunk",)}, "organs"),
        ({"organs": ("brain", "brain")}, "organs"),
        ({"tasks": ()}, "tasks"),
        ({"tasks": (TaskKind.pretrain, TaskKind.pretrain)}, "tasks"),
        ({"public": (Public.counts, Public.counts)}, "public"),
        ({"approved_recipes": ("zz" * 32,)}, "approved_recipes"),
        ({"approved_bundles": (KEY[1:],)}, "approved_bundles"),
        ({"bounds": {"rouns": Bounds(most=1)}}, "bounds.rouns"),
        ({"bounds": {"recipe": Bounds(most=1)}}, "bounds.recipe"),
        ({"nominal_subjects": 0}, "nominal_subjects"),
        ({"min_subjects": 0}, "min_subjects"),
        ({"min_subjects_per_organ": -1}, "min_subjects_per_organ"),
        ({"min_sites_per_group": 0}, "min_sites_per_group"),
        ({"rounds_per_day": 0}, "rounds_per_day"),
        ({"hours": ()}, "hours"),
        ({"hours": ("8-17",)}, "hours"),
        ({"hours": ("08:00-08:00",)}, "hours"),
        ({"hours": ("08:00-24:30",)}, "hours"),
        ({"hours": ("25:00-26:00",)}, "hours"),
        ({"hours": ("24:00-06:00",)}, "hours"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../UTC"}, "time_zone"),
        ({"time_zone": ""}, "time_zone"),
        ({"device": "cuda:x"}, "device"),
        ({"device": "tpu"}, "device"),
        ({"loader_threads": -1}, "loader_threads"),
        ({"min_free_memory_gib": -0.5}, "min_free_memory_gib"),
        ({"min_free_memory_gib": float("nan")}, "min_free_memory_gib"),
        ({"min_free_memory_gib": float("inf")}, "min_free_memory_gib"),
    ],
)
def test_what_cannot_be_is_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        _policy(**changes)
    assert caught.value.name == name
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"mode": PrivacyMode.none, "epsilon": 1.0}, "privacy.delta"),
        ({"mode": PrivacyMode.none, "delta": 1e-6}, "privacy.epsilon"),
        ({"mode": PrivacyMode.none, "epsilon": 11.0, "delta": 1e-6}, "privacy.epsilon"),
        ({"mode": PrivacyMode.dp}, "privacy.epsilon"),
        ({"mode": PrivacyMode.dp, "epsilon": 0.0, "delta": 1e-6}, "privacy.epsilon"),
        ({"mode": PrivacyMode.dp, "epsilon": 11.0, "delta": 1e-6}, "privacy.epsilon"),
        ({"mode": PrivacyMode.dp, "epsilon": float("nan"), "delta": 1e-6}, "privacy.epsilon"),
        ({"mode": PrivacyMode.dp, "epsilon": 3.0}, "privacy.delta"),
        ({"mode": PrivacyMode.dp, "epsilon": 3.0, "delta": 0.01}, "privacy.delta"),
    ],
)
def test_privacy_is_demanded_whole_or_not_at_all(said: dict[str, Any], name: str) -> None:
    with pytest.raises(PolicyError) as caught:
        PrivacyDemand(**said)
    assert caught.value.name == name


@pytest.mark.parametrize("mode", list(PrivacyMode))
def test_budget_is_what_noised_answers_are_charged_to(mode: PrivacyMode) -> None:
    assert PrivacyDemand(mode=mode, epsilon=3.0, delta=1e-6).budget == Budget(epsilon=3.0, delta=1e-6)
    assert PrivacyDemand(mode=PrivacyMode.none).budget is None


@pytest.mark.parametrize(
    "said", [{}, {"least": 2.0, "most": 1.0}, {"most": float("nan")}, {"least": float("inf")}, {"most": float("inf")}]
)
def test_a_bound_that_bounds_nothing_or_everything_is_a_mistake(said: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Bounds(**said)


def test_bounds_include_their_ends_and_hold_no_nan() -> None:
    both, least, most = Bounds(least=1, most=2), Bounds(least=1), Bounds(most=2)
    assert [value for value in (0.9, 1, 1.5, 2, 2.1, float("nan")) if both.hold(value)] == [1, 1.5, 2]
    assert [value for value in (0.9, 1, 1e300, float("nan")) if least.hold(value)] == [1, 1e300]
    assert [value for value in (-1e300, 2, 2.1, float("nan")) if most.hold(value)] == [-1e300, 2]


def test_bounds_reach_every_number_of_a_recipe_that_has_a_name() -> None:
    names = bounded_names()
    assert {"rounds", "threads", "pretrain.steps_per_round", "pretrain.learning_rate", "model.depth"} <= set(names)
    assert "pretrain.organ_mask.threshold_absolute" not in names, "yes and no are no numbers"
    assert "recipe" not in names
    smoke = recipes.recipe_of(recipes.load(["recipe=smoke", "rounds=7", "pretrain.organ_mask.rate=0.25"]))
    numbers = numbers_of(smoke)
    assert (numbers["rounds"], numbers["pretrain.organ_mask.rate"]) == (7, 0.25)
    assert numbers.keys() == numbers_of(Recipe()).keys() == set(names)


# Hours: against a walk over the minutes of a day.


def _minutes_of(window: str) -> set[int]:
    """The slow way: set out at the start and walk until the end."""
    (start_hour, start_minute), (end_hour, end_minute) = ((int(p) for p in w.split(":")) for w in window.split("-"))
    walked: set[int] = set()
    minute, end = start_hour * 60 + start_minute, (end_hour * 60 + end_minute) % 1440
    while minute not in walked and (minute != end or not walked):
        walked.add(minute)
        minute = (minute + 1) % 1440
    return walked


times = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
windows = st.tuples(times, times | st.just("24:00")).filter(lambda pair: pair[0] != pair[1]).map("-".join)


@given(
    hours=st.lists(windows, min_size=1, max_size=3, unique=True),
    now=st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)),
    offset=st.integers(-12, 14),
)
def test_hours_agree_with_a_walk_through_the_day(hours: list[str], now: datetime, offset: int) -> None:
    aware = now.replace(tzinfo=UTC).astimezone(timezone(timedelta(hours=offset)))
    minute = now.hour * 60 + now.minute
    expected = any(minute in _minutes_of(window) for window in hours)
    assert within_hours(_policy(hours=tuple(hours)), aware) == expected


def test_hours_are_the_sites_own_across_midnight_and_summer_time() -> None:
    night = _policy(hours=("22:00-06:00",), time_zone="Europe/Berlin")
    winter, summer = datetime(2026, 1, 15, tzinfo=UTC), datetime(2026, 7, 15, tzinfo=UTC)
    assert [h for h in range(24) if within_hours(night, winter.replace(hour=h))] == [0, 1, 2, 3, 4, 21, 22, 23]
    assert [h for h in range(24) if within_hours(night, summer.replace(hour=h))] == [0, 1, 2, 3, 20, 21, 22, 23]


def test_window_holds_its_start_and_not_its_end() -> None:
    day, night = _policy(hours=("08:00-17:30",)), _policy(hours=("22:00-06:00",))
    for policy, inside, outside in (
        (day, ["08:00", "17:29"], ["07:59", "17:30"]),
        (night, ["22:00", "05:59"], ["06:00"]),
    ):
        for word in (*inside, *outside):
            moment = datetime.combine(datetime(2026, 3, 4), time.fromisoformat(word), UTC)
            assert within_hours(policy, moment) == (word in inside), word


@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_a_moment_that_no_clock_shows_is_outside(moment: datetime) -> None:
    zone = "Pacific/Kiritimati" if moment is datetime.max else "Pacific/Honolulu"
    assert not within_hours(_policy(time_zone=zone), moment.replace(tzinfo=UTC))
