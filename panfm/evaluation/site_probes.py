"""Probes inside one site: fitted on subjects that it trains on, scored on those that it holds out, by the recipe's labels.

Labels and embeddings stay at the site; a score is told only under a name that the recipe itself has given, and only where
enough subjects stand behind it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from panfm.config import EvaluationConfig
from panfm.data.manifest import read_labels
from panfm.evaluation.probes import Floats, Measure, auc, r2, ridge_scores

FEWEST_SUBJECTS = 5
"""With a known label, on each side; below that a score is noise, and says too much of single people."""

LOWEST_R2 = -1.0
"""A worse R2 is told as this: on a few subjects it has no floor, and one site's would drown all others in the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Embeddings of some subjects and what is known of them."""

    embeddings: NDArray[np.float32]
    """[n, F]."""
    labels: dict[str, Floats]
    """Label column -> [n], NaN where unknown."""


def labels_of(table: Path, subjects: Sequence[str]) -> dict[str, Floats]:
    """Label column -> [n] of these subjects, each from its first row, NaN where there is none; empty without a table.

    Raises: DataError when the table cannot be read.
    """
    if not table.is_file():
        return {}
    read = read_labels(table)
    row_of = {subject: row for row, subject in reversed(list(enumerate(read.subjects)))}
    values = np.full((len(subjects), len(read.names)), np.nan)
    for place, subject in enumerate(subjects):
        if subject in row_of:
            values[place] = read.values[row_of[subject]]
    return {name: values[:, column] for column, name in enumerate(read.names)}


def wants(config: EvaluationConfig, columns: Sequence[str]) -> bool:
    """Whether the recipe asks for any of these label columns."""
    return any(_columns(name, columns) for name in config.probes)


def site_probes(config: EvaluationConfig, fit: Labelled, held_out: Labelled) -> dict[str, float]:
    """The recipe's name of a probe -> its score on the held-out subjects; only those that can be told.

    R2 for `numbers` (at least LOWEST_R2), area under the ROC curve for `classes`; of several columns their mean.
    """
    found: dict[str, float] = {}
    for names, measure in ((config.numbers, _r2), (config.classes, auc)):
        for name in names:
            columns = [c for c in _columns(name, list(fit.labels)) if _can_be_told(c, fit, held_out, measure)]
            if columns:
                found[name] = float(np.mean(_scores(columns, fit, held_out, measure)))
    return found


def _columns(name: str, columns: Sequence[str]) -> list[str]:
    """The label columns that a name of the recipe stands for."""
    return [column for column in columns if column == name or (name.endswith("_") and column.startswith(name))]


def _can_be_told(column: str, fit: Labelled, held_out: Labelled, measure: Measure) -> bool:
    """Enough subjects on both sides; different values on both; only 0 and 1 where a class is asked for."""
    for part in (fit, held_out):
        known = part.labels[column][np.isfinite(part.labels[column])]
        values = np.unique(known)
        if len(known) < FEWEST_SUBJECTS or len(values) < 2 or (measure is auc and not np.array_equal(values, (0, 1))):
            return False
    return True


def _scores(columns: Sequence[str], fit: Labelled, held_out: Labelled, measure: Measure) -> list[float]:
    targets = np.stack([fit.labels[column] for column in columns])
    predicted = ridge_scores(fit.embeddings, targets, held_out.embeddings)
    scores = []
    for column, scored in zip(columns, predicted, strict=True):
        known = np.isfinite(held_out.labels[column])
        scores.append(float(measure(held_out.labels[column][known], scored[known])))
    return scores


def _r2(target: Floats, scores: Floats) -> Floats:
    floored: Floats = np.maximum(r2(target, scores), LOWEST_R2)
    return floored
