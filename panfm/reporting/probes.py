"""The rows of a probe table, checked: what a frozen embedding says about a target, with its interval.

Rows stand in the record as plain dictionaries that an evaluation wrote; a row that lacks a value is shown without one.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from panfm.reporting.history import finite
from panfm.reporting.record import ProbeTable

_SMALLER_IS_BETTER = frozenset({"MAE", "RMSE", "MSE", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow:
    """One embedding's answer to one question."""

    embedding: str
    target: str
    metric: str
    value: float | None
    low: float | None
    """Lower end of the 95 % interval over test subjects."""
    high: float | None

    @property
    def trained(self) -> bool:
        """True for the model that this run trained; everything else is a control."""
        return self.embedding.lower().startswith("trained")


def probe_rows(table: ProbeTable) -> list[ProbeRow]:
    """The rows of a probe table, in its order."""
    return [
        ProbeRow(
            embedding=str(row.get("embedding", "not named")),
            target=str(row.get("target", "")),
            metric=str(row.get("metric", "")),
            value=finite(row.get("value")),
            low=finite(row.get("low")),
            high=finite(row.get("high")),
        )
        for row in table.rows
    ]


def by_question(rows: Sequence[ProbeRow]) -> dict[tuple[str, str], list[ProbeRow]]:
    """(target, metric) -> rows, in the order in which the table asks."""
    questions: dict[tuple[str, str], list[ProbeRow]] = {}
    for row in rows:
        questions.setdefault((row.target, row.metric), []).append(row)
    return questions


def best(rows: Sequence[ProbeRow]) -> ProbeRow | None:
    """The best answer to one question; None when no row has a value."""
    known = [row for row in rows if row.value is not None]
    if not known:
        return None
    sign = -1.0 if known[0].metric in _SMALLER_IS_BETTER else 1.0
    return max(known, key=lambda row: sign * (row.value or 0.0))
