"""The numbers of a record's events as named curves over rounds: what other tools draw (TensorBoard, MLflow).

A name has two parts, what and who: `loss/<site>`, `share_brain/<site>`, `epsilon/<site>`, `delta_norm/<group>`,
`evaluation/relative_loss`. Held-out figures of a site begin with `held_out_`. What is no finite number is left out.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from panfm.reporting.history import ACCEPTED, finite
from panfm.reporting.record import (
    Event,
    ProbeTable,
    RoundEvaluated,
    RoundFinished,
    RunFinished,
    SiteAnswered,
    SiteEvaluated,
)


@dataclass(frozen=True, slots=True)
class Scalar:
    """One point of one curve."""

    name: str
    step: int
    """The round."""
    value: float


def scalars_of(event: Event, last_round: int) -> list[Scalar]:
    """The points that an event adds; none for most kinds.

    Args:
        last_round: the round to which an event belongs that names none.
    """
    step = round_of(event) or last_round
    named = ((name, finite(value)) for name, value in _numbers(event))
    return [Scalar(name, step, value) for name, value in named if value is not None]


def round_of(event: Event) -> int | None:
    """The round of an event; None for those that belong to none."""
    number = event.rounds_done if isinstance(event, RunFinished) else getattr(event, "round", None)
    return number if isinstance(number, int) else None


def _numbers(event: Event) -> Iterator[tuple[str, object]]:
    if isinstance(event, SiteAnswered):
        yield from _cost(event, "")
        yield f"epsilon/{event.site}", event.epsilon
        if event.outcome == ACCEPTED:
            yield f"subjects/{event.site}", event.num_subjects
            yield from _metrics(event.metrics, event.site, "")
    elif isinstance(event, SiteEvaluated):
        yield from _cost(event, "held_out_")
        if event.outcome == ACCEPTED:
            yield from _metrics(event.metrics, event.site, "held_out_")
    elif isinstance(event, RoundFinished):
        yield "round/seconds", event.seconds
        yield from ((f"delta_norm/{group}", norm) for group, norm in event.delta_norm.items())
        yield from ((f"coverage/{organ}", sites) for organ, sites in event.coverage.items())
    elif isinstance(event, RoundEvaluated):
        yield from (("evaluation/score", event.score), ("evaluation/best_round", event.best_round))
        yield from _metrics(event.metrics, "", "evaluation")
    elif isinstance(event, ProbeTable):
        for row in event.rows:
            yield f"probe_{row.get('metric')}/{row.get('target')}: {row.get('embedding')}", row.get("value")


def _cost(event: SiteAnswered | SiteEvaluated, prefix: str) -> Iterator[tuple[str, object]]:
    for name in ("seconds", "bytes_down", "bytes_up"):
        yield f"{prefix}answer_{name}/{event.site}", getattr(event, name)


def _metrics(metrics: Mapping[str, Any], site: str, prefix: str) -> Iterator[tuple[str, object]]:
    """Of a site: `<prefix><metric>[_<organ>]/<site>`; of all of them: `<prefix>/<metric>` and `<prefix>_<metric>/<organ>`."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield (f"{prefix}{name}_{key}/{site}" if site else f"{prefix}_{name}/{key}"), inner
        else:
            yield (f"{prefix}{name}/{site}" if site else f"{prefix}/{name}"), value
