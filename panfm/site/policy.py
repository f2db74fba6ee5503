"""A hospital's policy: what it takes part in, and what of it may leave. Set by the hospital's own file and by nobody else.

What opens a door has no default: whom the site serves (`coordinator_keys`), with what (`organs`), for which `tasks` and
under which `privacy` must be said, and what is not said of recipes, bundles and `public` is not allowed. Limits have defaults
that err on the strict side. Where recipe and policy differ, the stricter wins. How the file is read, and how a mistake in it is
named by its line: `panfm.site.policy_file`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, time, tzinfo
from enum import Enum
from functools import cache
from zoneinfo import ZoneInfo

from panfm.config import Recipe
from panfm.errors import ConfigError
from panfm.organs import check_organ_names
from panfm.privacy.accounting import Budget

_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_HEX_64 = re.compile(r"[0-9a-f]{64}")


class PolicyError(ConfigError):
    """A mistake in the policy, and under which name it stands."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"policy: {name} {problem}")
        self.name, self.problem = name, problem


class TaskKind(Enum):
    """What a coordinator may ask for."""

    pretrain = "pretrain"
    evaluate = "evaluate"


class PrivacyMode(Enum):
    """What must happen to an update before it may leave; not to be confused with a recipe's `privacy.mode`."""

    none = "none"
    dp = "dp"


class Public(Enum):
    """Kinds of what may leave exactly as it is."""

    updates = "updates"
    """What training changed in the model, without noise."""
    counts = "counts"
    """Numbers of subjects and of scans, and which class of voxel spacing most scans of an organ have."""
    metrics = "metrics"
    """Losses, shares, norms and their like, rounded."""


def _require(condition: bool, name: str, problem: str) -> None:
    if not condition:
        raise PolicyError(name, problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Smallest and largest value of one number of a recipe, both allowed themselves."""

    least: float | None = None
    """Smallest value allowed; null: none."""
    most: float | None = None
    """Largest value allowed; null: none."""

    def __post_init__(self) -> None:
        given = [value for value in (self.least, self.most) if value is not None]
        _require(bool(given), "bounds", "need `least`, `most` or both; an empty bound allows everything")
        _require(all(map(math.isfinite, given)), "bounds", "need finite numbers")
        _require(given == sorted(given), "bounds", f"allow nothing: least {self.least} is above most {self.most}")

    def hold(self, value: float) -> bool:
        """Whether the value lies within."""
        least = -math.inf if self.least is None else self.least
        return least <= value <= (math.inf if self.most is None else self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyDemand:
    """What the site demands for its subjects."""

    mode: PrivacyMode
    """none: updates without noise leave, too, if declared public. dp: only noised and charged ones; a recipe without privacy is
    refused."""
    epsilon: float | None = None
    """Largest privacy loss of a subject over everything that the site ever answers with noise (dimensionless). With mode none it
    may be left out: then noise that a recipe adds is charged to nobody, and its updates need `updates` among what is public."""
    delta: float | None = None
    """Chance that this bound fails; keep it well below 1 / subjects. It stands where epsilon stands."""

    def __post_init__(self) -> None:
        if self.mode is PrivacyMode.none and self.epsilon is None and self.delta is None:
            return
        needed = " with mode dp" if self.mode is PrivacyMode.dp else ", as the other of epsilon and delta is given"
        for name, value, largest in (("epsilon", self.epsilon, 10.0), ("delta", self.delta, 1e-3)):
            _require(
                value is not None and 0 < value <= largest,
                f"privacy.{name}",
                f"must be above 0 and at most {largest:g}{needed}, got {value}",
            )

    @property
    def budget(self) -> Budget | None:
        """What noised answers are charged to; None where nothing is charged."""
        if self.epsilon is None or self.delta is None:
            return None
        return Budget(epsilon=self.epsilon, delta=self.delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One site's policy."""

    site: str
    """Name of the site, as the coordinator knows it: letters, digits, - and _."""
    coordinator_keys: tuple[str, ...]
    """Public Ed25519 keys of the coordinators whose tasks the site accepts (64 hexadecimal digits each)."""
    organs: tuple[str, ...]
    """Organs that the site offers, which everybody in the study will know; only those of its prepared scans count."""
    tasks: tuple[TaskKind, ...]
    """What may be asked for: pretrain, evaluate."""
    privacy: PrivacyDemand
    """What must happen to an update before it may leave."""
    public: tuple[Public, ...] = ()
    """What may leave exactly as it is: updates, counts, metrics. What is not named leaves noised and charged, or not at all."""
    nominal_subjects: int = 1
    """Number of subjects told for each organ where counts are not public; it is the site's vote in the average."""
    approved_recipes: tuple[str, ...] = ()
    """Recipes by the SHA-256 of all their values; if any is named, no other recipe is accepted."""
    bounds: dict[str, Bounds] = field(default_factory=dict)
    """Bounds on numbers of a recipe by dotted name, all of which must hold. Without these and approved_recipes none passes."""
    approved_bundles: tuple[str, ...] = ()
    """Bundles of code by the SHA-256 of the file, beside those that `panfm site approve` recorded."""
    min_subjects: int = 10
    """Fewest subjects with which the site trains in a round."""
    min_subjects_per_organ: int = 10
    """An organ that fewer subjects have is not trained, and not offered."""
    min_sites_per_group: int = 1
    """The site trains only by recipes that average no organ over fewer sites than this."""
    rounds_per_day: int = 24
    """Most tasks that the site answers by training within 24 hours, over all runs."""
    hours: tuple[str, ...] = ("00:00-24:00",)
    """Times of the day at which training may start, such as 22:00-06:00, in `time_zone`."""
    time_zone: str = "UTC"
    """Time zone of `hours` by its IANA name, such as Europe/Berlin."""
    device: str = "cpu"
    """Where the site trains: cpu, cuda or cuda:N."""
    min_free_memory_gib: float = 1.0
    """Training starts only when this much memory of the device is free (GiB); 0: is not asked."""
    loader_threads: int = 1
    """Threads that read and augment batches while the device trains; 0: none. The result does not depend on it."""

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", self.site) is not None,
            "site",
            f"{self.site!r:.80} should be at most 64 letters, digits, - and _; rename the site",
        )
        self._check_lists()
        self._check_organs()
        _check_bounds(self.bounds)
        self._check_numbers()
        _check_hours(self.hours, self.time_zone)
        _require(
            re.fullmatch(r"cpu|cuda(:\d+)?", self.device) is not None,
            "device",
            f"should be cpu, cuda or cuda:N, got {self.device!r:.80}",
        )

    def _check_lists(self) -> None:
        remedy = "copy it from the coordinator's card"
        for name in ("coordinator_keys", "organs", "tasks", "hours"):
            _require(bool(getattr(self, name)), name, "is empty, so the site would take part in nothing; fill it in")
        for name in ("coordinator_keys", "approved_recipes", "approved_bundles"):
            for value in getattr(self, name):
                _require(
                    _HEX_64.fullmatch(value) is not None,
                    name,
                    f"should hold 64 hexadecimal digits (0-9, a-f) each, got {value!r:.80}; {remedy}",
                )
            remedy = "copy it from what you reviewed"
        for name in ("coordinator_keys", "tasks", "public", "approved_recipes", "approved_bundles", "hours"):
            _require(_all_differ(getattr(self, name)), name, "names something twice; remove one")

    def _check_organs(self) -> None:
        try:
            check_organ_names(self.organs)
        except ConfigError as error:
            raise PolicyError("organs", f"cannot be offered so: {error}") from error

    def _check_numbers(self) -> None:
        for name in (
            "nominal_subjects",
            "min_subjects",
            "min_subjects_per_organ",
            "min_sites_per_group",
            "rounds_per_day",
        ):
            _require(getattr(self, name) >= 1, name, f"must be at least 1, got {getattr(self, name)}")
        _require(self.loader_threads >= 0, "loader_threads", f"must be 0 or more, got {self.loader_threads}")
        _require(
            0 <= self.min_free_memory_gib < math.inf,
            "min_free_memory_gib",
            f"must be 0 or more GiB, got {self.min_free_memory_gib}",
        )


def within_hours(policy: Policy, now: datetime) -> bool:
    """Whether training may start at this moment.

    Args:
        now: aware; a moment that the policy's time zone cannot express is outside.
    """
    try:
        local = now.astimezone(_zone(policy.time_zone)).time()
    except (OverflowError, ValueError):
        return False
    return any(_holds(window, local) for window in policy.hours)


def numbers_of(recipe: Recipe) -> dict[str, float]:
    """The numbers of a recipe on which a policy can set bounds, by dotted name, such as `pretrain.learning_rate`."""
    return dict(_numbers(recipe, ""))


def _numbers(settings: object, path: str) -> Iterable[tuple[str, float]]:
    assert is_dataclass(settings)
    for f in fields(settings):
        value, name = getattr(settings, f.name), f"{path}{f.name}"
        if is_dataclass(value):
            yield from _numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


@cache
def bounded_names() -> tuple[str, ...]:
    """Dotted names that `bounds` may use."""
    return tuple(numbers_of(Recipe()))


def _check_bounds(bounds: dict[str, Bounds]) -> None:
    known = bounded_names()
    for name in bounds:
        near = difflib.get_close_matches(name, known, n=1) or ["pretrain.learning_rate, written as here"]
        _require(name in known, f"bounds.{name}", f"is no number of a recipe; did you mean {near[0]}?")


def _all_differ(values: tuple[object, ...]) -> bool:
    return len(set(values)) == len(values)


def _check_hours(hours: tuple[str, ...], time_zone: str) -> None:
    for window in hours:
        start, _, end = window.partition("-")
        _require(
            _HOURS.fullmatch(window) is not None and start != end,
            "hours",
            f"should hold windows such as 08:00-17:30 or 22:00-06:00, got {window!r:.80}; the whole day is 00:00-24:00",
        )
    try:
        _zone(time_zone)
    except (KeyError, OSError, ValueError) as error:  # ZoneInfo's own is a KeyError
        raise PolicyError("time_zone", f"{time_zone!r:.80} is not known here; write UTC or Europe/Berlin") from error


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)  # UTC needs no database of time zones, which a small image may lack


def _holds(window: str, local: time) -> bool:
    """Whether the time lies in the window: its start belongs to it, its end does not, and it may pass midnight."""
    start, end = (_minute(word) for word in window.split("-"))
    now = 60 * local.hour + local.minute
    return start <= now < end if start < end else now >= start or now < end


def _minute(word: str) -> int:
    hours, minutes = word.split(":")
    return 60 * int(hours) + int(minutes)
