"""Exact Shapley values: what each organ adds to a score, averaged over all orders in which organs could come.

Attention is not contribution: an organ may be looked at and not used. With seven organs there are 128 sets, so the values
are computed and not sampled (Shapley 1953): phi_o = sum over sets S without o of |S|! (m - 1 - |S|)! / m! (v(S + o) - v(S)).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import factorial

import numpy as np

from panfm.evaluation.organ_sets import OrganSet, all_sets
from panfm.evaluation.probes import Floats


def shapley_values(values: Mapping[OrganSet, Floats], organs: Sequence[str], nothing: float) -> dict[str, Floats]:
    """Each organ's value; they sum to v(all organs) - v(none).

    Args:
        values: v of each non-empty set, each [...], such as one number a resample; keys in the order of `organs`.
        nothing: v of the empty set: the score of a guess, 0.5 for the area under the ROC curve.
    """
    number = len(organs)
    share = {size: factorial(size) * factorial(number - 1 - size) / factorial(number) for size in range(number)}
    found: dict[str, Floats] = {}
    for organ in organs:
        others = [(), *all_sets([other for other in organs if other != organ])]
        gains = [
            share[len(held)] * (values[_with(held, organ, organs)] - _value(values, held, nothing)) for held in others
        ]
        found[organ] = np.sum(gains, axis=0)
    return found


def evenness(contributions: Sequence[float]) -> float:
    """Entropy of the shares over its maximum, 0 (one organ alone) to 1; what harms counts as 0. NaN where nothing contributes."""
    clipped = np.clip(np.asarray(contributions, dtype=np.float64), 0, None)
    if not clipped.sum() > 0 or len(clipped) < 2:
        return float("nan")
    share = clipped / clipped.sum()
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum() / np.log(len(clipped)))


def _with(held: OrganSet, organ: str, organs: Sequence[str]) -> OrganSet:
    return tuple(name for name in organs if name == organ or name in held)


def _value(values: Mapping[OrganSet, Floats], held: OrganSet, nothing: float) -> Floats | float:
    return values[held] if held else nothing
