"""How much worse the probe is at the site where it is worst: a mean over everybody can hide a hospital that gets nothing.

Only labels that every compared site has cases of are averaged, or the sites would be asked different questions.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from panfm.evaluation.probes import Floats
from panfm.evaluation.resampling import Estimate, auroc, estimate, macro
from panfm.evaluation.targets import Target, is_askable


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGap:
    """One target's score at each site."""

    columns: tuple[str, ...]
    """Labels that were averaged."""
    by_site: dict[int, Estimate]
    """Place of the site -> its score, over its own test subjects."""
    gap: Estimate
    """Mean over the sites minus the worst site; the worst over all test subjects, its interval not counting the choice."""
    worst: int


def site_gap(
    target: Target,
    labels: Mapping[str, Floats],
    scores: Mapping[str, Floats],
    counts: Floats,
    site_of: NDArray[np.int64],
) -> SiteGap | None:
    """The score of each site, and the gap; None where no two sites have cases of a label.

    Args:
        labels, scores: column -> [n].
        counts: [R, n].
        site_of: [n].
    """
    sites, columns = _comparable(target.columns, labels, site_of)
    if len(sites) < 2 or not columns:
        return None
    values = {site: _at(site, columns, labels, scores, counts, site_of) for site in sites}
    worst = min(sites, key=lambda site: values[site][0])
    return SiteGap(
        columns=columns,
        by_site={site: estimate(values[site]) for site in sites},
        gap=estimate(np.mean(list(values.values()), axis=0) - values[worst]),
        worst=worst,
    )


def _comparable(
    columns: Sequence[str], labels: Mapping[str, Floats], site_of: NDArray[np.int64]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The sites that have cases of at least one of the labels, and the labels that all of these have cases of."""
    cases = {
        int(site): {column for column in columns if is_askable(labels[column][site_of == site])}
        for site in np.unique(site_of)
    }
    sites = tuple(site for site, own in cases.items() if own)
    common = set.intersection(*(cases[site] for site in sites)) if sites else set()
    return sites, tuple(column for column in columns if column in common)


def _at(
    site: int,
    columns: Sequence[str],
    labels: Mapping[str, Floats],
    scores: Mapping[str, Floats],
    counts: Floats,
    site_of: NDArray[np.int64],
) -> Floats:
    own = site_of == site
    return macro(np.stack([auroc(labels[column][own], scores[column][own], counts[:, own]) for column in columns]))
