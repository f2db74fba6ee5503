"""The record of a run: one JSON object a line, append-only, the one truth about what happened.

Every line has `schema`, `event`, `time` (UTC, ISO 8601) and the fields of its event class below. The coordinator writes
it (`server/run_record.py`), the reports read it. Readers skip events they do not know and refuse a newer schema.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from panfm.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """First line of a run."""

    run: str
    recipe: str
    """The whole recipe as YAML."""
    seed: int
    rounds: int
    panfm_version: str
    torch_version: str
    flower_version: str
    group_parameters: dict[str, int]
    """Number of parameters of each group (trunk, heads, each organ)."""
    init_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteJoined:
    """A site said who it is."""

    site: str
    organs: list[str]
    panfm_version: str
    num_subjects: dict[str, int] = field(default_factory=dict)
    """Subjects per organ, where the site tells; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRejected:
    """A site that may not take part, and why."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStarted:
    """Tasks went out."""

    round: int
    sites: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteAnswered:
    """What became of one site's task in one round."""

    round: int
    site: str
    outcome: str
    """What became of it.

    accepted | left_out (failed a check) | refused (by the site's policy) | failed (an error at the site) | late (no
    answer in time).
    """
    reason: str = ""
    """Empty when accepted; else one line for people."""
    seconds: float = 0.0
    """From the sending of the tasks to this answer."""
    bytes_down: int = 0
    bytes_up: int = 0
    num_subjects: int = 0
    organ_subjects: dict[str, int] = field(default_factory=dict)
    num_steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    """`panfm.protocol.TrainMetrics` as a dict; empty unless accepted."""
    audit_head: str = ""
    """Head of the site's audit log when it answered, as DIGEST:LENGTH: the witness for `panfm site audit verify`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFinished:
    """The average of a round, and what it stood on."""

    round: int
    seconds: float
    weights: dict[str, dict[str, float]]
    """group -> site -> weight; each group's weights sum to 1. Only groups that changed."""
    unchanged_groups: dict[str, str]
    """group -> why nobody's training of it counted."""
    delta_norm: dict[str, float]
    """group -> L2 norm of the averaged delta."""
    model_digest: str
    """SHA-256 over student and teacher after the round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTable:
    """What frozen embeddings of held-out subjects say, beside the controls."""

    title: str
    num_train: int
    num_test: int
    rows: list[dict[str, Any]]
    """Each: embedding (trained model, untrained model, ...), target, metric (R2, MAE, AUC), value, low, high (95 % bootstrap
    interval over test subjects), and gain, gain_low, gain_high: the trained model's value minus this one, paired."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """Last line of a run."""

    status: str
    """complete | incomplete (fell below its coverage, or nobody trained) | stopped (by a person)."""
    reason: str
    rounds_done: int
    seconds: float
    model: str = ""
    """Folder of the exported model, relative to the run."""


Event = RunStarted | SiteJoined | SiteRejected | RoundStarted | SiteAnswered | RoundFinished | ProbeTable | RunFinished
_EVENTS: dict[str, type[Event]] = {
    "run_started": RunStarted,
    "site_joined": SiteJoined,
    "site_rejected": SiteRejected,
    "round_started": RoundStarted,
    "site_answered": SiteAnswered,
    "round_finished": RoundFinished,
    "probe_table": ProbeTable,
    "run_finished": RunFinished,
}
E_co = TypeVar("E_co", bound=Event)


def to_line(event: Event, time: datetime | None = None) -> str:
    """The event as one line of JSON, without the newline."""
    name = next(name for name, cls in _EVENTS.items() if type(event) is cls)
    stamp = (time or datetime.now(UTC)).isoformat(timespec="milliseconds")
    return json.dumps({"schema": SCHEMA, "event": name, "time": stamp, **asdict(event)})


def read_record(path: Path) -> Iterator[Event]:
    """The events of a record, in order; a half-written last line (a killed run) is left out.

    Raises: DataError when there is no record, a line is damaged, or it was written by a newer schema.
    """
    if not path.is_file():
        raise DataError(f"no record at {path}; name the folder of a run, which holds record.jsonl")
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            newer = values["schema"] > SCHEMA
            event = None if newer else _event(values)
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise DataError(f"{path.name} line {number} is damaged; restore the file from a copy") from error
        if newer:
            raise DataError(
                f"{path.name} was written by schema {values['schema']}, this panfm reads {SCHEMA}; update panfm"
            )
        if event is not None:
            yield event


def _event(values: dict[str, Any]) -> Event | None:
    cls = _EVENTS.get(values["event"])
    return None if cls is None else cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def events_of(kind: type[E_co], events: list[Event]) -> list[E_co]:
    """Only the events of one kind, in order."""
    return [event for event in events if isinstance(event, kind)]
