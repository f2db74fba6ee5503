"""What an evaluation found, as the rows of its tables: plain cells that JSON and CSV can say."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from panfm.evaluation.organ_attention import OrganAttention, evenness_of
from panfm.evaluation.probes import Floats
from panfm.evaluation.resampling import Estimate, estimate
from panfm.evaluation.shapley import evenness, shapley_values
from panfm.evaluation.sweep import SweepValues, area, by_missing, without

CHANCE = 0.5
"""Area under the ROC curve of a guess: what no organ at all is worth."""

Row = dict[str, Any]
"""One line of a table; None where a value is not defined."""


def attention_rows(seen: OrganAttention, counts: Floats) -> list[Row]:
    """Per organ, then for all of them the evenness of the shares; counts [R, n]."""
    drop = seen.share - seen.share_of_noise
    rows: list[Row] = []
    for column, organ in enumerate(seen.organs):
        fall = estimate(_weighted_mean(drop[:, column], counts))
        rows.append(
            {
                "organ": organ,
                "share": float(seen.share[:, column].mean()),
                "lift": float(seen.lift[:, column].mean()),
                "noise_share": float(seen.share_of_noise[:, column].mean()),
                "drop": fall.value,
                "low": fall.low,
                "high": fall.high,
                "fell": float((drop[:, column] > 0).mean()),
            }
        )
    even = estimate(_weighted_mean(evenness_of(seen.share), counts))
    empty: Row = dict.fromkeys(("lift", "noise_share", "drop", "fell"))
    return [*rows, {"organ": "evenness of shares", **empty, "share": even.value, "low": even.low, "high": even.high}]


def _weighted_mean(values: Floats, counts: Floats) -> Floats:
    mean: Floats = counts @ values / counts.sum(1)
    return mean


def sweep_rows(sweep: SweepValues) -> list[Row]:
    """One row for each number of missing organs."""
    return [
        {
            "missing": row.missing,
            "sets": row.num_sets,
            "mean": _defined(row.mean.value),
            "low": _defined(row.mean.low),
            "high": _defined(row.mean.high),
            "worst": _defined(row.worst.value),
            "worst_low": _defined(row.worst.low),
            "worst_high": _defined(row.worst.high),
            "worst_set": "+".join(row.worst_set),
        }
        for row in by_missing(sweep)
    ]


def robustness_rows(sweep: SweepValues, dominant: Sequence[str]) -> list[Row]:
    """Complete, area, the worst of all sets; what is left without the dominant organs, and what that costs."""
    worst = int(np.argmin(sweep.values[:, 0]))
    values = {
        "complete": sweep.values[0],
        "area by number missing": area(sweep),
        "worst set": sweep.values[worst],
    }
    leant_on = [organ for organ in sweep.organs if organ in dominant]
    if 0 < len(leant_on) < len(sweep.organs):
        name = " and ".join(leant_on)
        values[f"without {name}"] = without(sweep, leant_on)
        values[f"lost without {name}"] = sweep.values[0] - values[f"without {name}"]
    sets = {"worst set": "+".join(sweep.sets[worst])}
    return [{"quantity": name, **told(estimate(value)), "set": sets.get(name, "")} for name, value in values.items()]


def contribution_rows(sweep: SweepValues) -> list[Row]:
    """Shapley value, score alone and loss without, of each organ; then the evenness of the Shapley values."""
    shapley = shapley_values(sweep.by_set, sweep.organs, CHANCE)
    rows: list[Row] = []
    for organ, values in shapley.items():
        lost = sweep.values[0, 0] - without(sweep, [organ])[0]
        alone = {"alone": _defined(sweep.by_set[(organ,)][0]), "lost_without": _defined(lost)}
        rows.append({"organ": organ, **told(estimate(values), "shapley"), **alone})
    even = estimate(np.array([evenness(column) for column in np.stack(list(shapley.values())).T]))
    rest: Row = {"alone": None, "lost_without": None}
    return [*rows, {"organ": "evenness", **told(even, "shapley"), **rest}]


def set_rows(sweep: SweepValues) -> list[Row]:
    """One row for each organ set."""
    return [
        {"organs": "+".join(held), "missing": len(sweep.organs) - len(held), **told(estimate(values))}
        for held, values in zip(sweep.sets, sweep.values, strict=True)
    ]


def told(found: Estimate, name: str = "value") -> Row:
    """The estimate as cells."""
    cells = {name: found.value, "low": found.low, "high": found.high}
    return {key: _defined(value) for key, value in cells.items()}


def _defined(value: float) -> float | None:
    """None for what is not defined, which JSON can say."""
    return float(value) if np.isfinite(value) else None
