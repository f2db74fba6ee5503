"""What a site's checked scans say together: outliers within an organ, who has which organs, and whom they are missing from.

Only scans that were not refused count; a refused scan is an organ that the subject does not have.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

from panfm.data.check import INTENSITY_PERCENTILES, CheckReport, ScanFacts
from panfm.data.manifest import LabelTable

OUTLIER = 3.5
"""Robust z-score from which on a scan is called an outlier (Iglewicz & Hoaglin 1993, "How to detect and handle outliers")."""
_FEWEST = 5
"""Scans of an organ below which nobody can lie outside."""
_MAD_TO_SIGMA, _MEAN_DEVIATION_TO_SIGMA = 1.4826, 1.2533
"""Factors that make the median and the mean absolute deviation estimate a normal distribution's sigma; the second is used
where more than half of the values are equal and the first is 0 (the same source)."""
_LEAST_SIGMA = 0.05
"""Differences of a few percent of a length, or of an organ's range of intensities, are no news, however alike the others."""
_GROUPS = ("site", "centre", "center", "scanner", "sex", "age")
"""Columns of `labels.csv`, by how they begin, by which missing organs are counted."""
_MOST_VALUES = 6
"""Labels with more values than this are cut at their quartiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceGroup:
    """Subjects that share a value of a label, and how many of them have each organ."""

    name: str
    """For example "age 20 to 41", "sex unknown", "all"."""
    num_subjects: int
    having: Mapping[str, int]


def outliers(report: CheckReport) -> tuple[tuple[float, str], ...]:
    """How far each scan lies out among those of its organ, and in what.

    Returns: for each scan of the report the largest robust z-score and the name of its measure; (0, "") for a refused
        scan and for organs with fewer than five scans.
    """
    scores: list[tuple[float, str]] = [(0.0, "")] * len(report.scans)
    for organ in {scan.organ for scan in report.scans}:
        places = [i for i, scan in enumerate(report.scans) if scan.organ == organ and scan.facts is not None]
        if len(places) >= _FEWEST:
            for name, values in _measures([facts for i in places if (facts := report.scans[i].facts)]).items():
                for place, score in zip(places, robust_z(values, _LEAST_SIGMA), strict=True):
                    scores[place] = max(scores[place], (abs(score), name))
    return tuple(scores)


def robust_z(values: Sequence[float], least_sigma: float) -> list[float]:
    """Distance of each value from the median in robust standard deviations, taken as `least_sigma` at least."""
    middle = median(values)
    distances = [abs(value - middle) for value in values]
    sigma = _MAD_TO_SIGMA * median(distances) or _MEAN_DEVIATION_TO_SIGMA * sum(distances) / len(distances)
    return [(value - middle) / max(sigma, least_sigma) for value in values]


def organ_sets(report: CheckReport) -> dict[tuple[str, ...], int]:
    """Subjects by the organs that they have, most frequent set first."""
    counts = Counter(tuple(o for o in report.organs if o in has) for has in presence(report).values())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def presence(report: CheckReport) -> dict[str, set[str]]:
    """The organs of each subject, in any visit; a subject whose scans were all refused has none."""
    has: dict[str, set[str]] = {scan.subject: set() for scan in report.scans}
    for scan in report.scans:
        if scan.facts is not None:
            has[scan.subject].add(scan.organ)
    return has


def missingness(report: CheckReport, labels: LabelTable | None) -> tuple[PresenceGroup, ...]:
    """Organs by site, sex and age, as far as the site's `labels.csv` knows them, after a first line of all subjects."""
    has = presence(report)
    groups = [_group("all", list(has), has, report.organs)]
    for column, name in enumerate(labels.names if labels else ()):
        if labels is not None and name.lower().startswith(_GROUPS):
            values = _first_values(labels, column)
            for text, subjects in _split(values, list(has)).items():
                groups.append(_group(f"{name} {text}", subjects, has, report.organs))
    return tuple(groups)


def _measures(scans: Sequence[ScanFacts]) -> dict[str, list[float]]:
    """What scans of one organ should share. Lengths as logarithms, for they differ by factors, and sorted, for an axis
    order is no difference; intensities as multiples of the median scan's range."""
    lengths = {
        "finest spacing": [min(scan.spacing_mm) for scan in scans],
        "coarsest spacing": [max(scan.spacing_mm) for scan in scans],
        "fewest voxels": [float(min(scan.shape)) for scan in scans],
        "shortest side": [min(_sides_mm(scan)) for scan in scans],
        "longest side": [max(_sides_mm(scan)) for scan in scans],
        "organ volume": [max(scan.organ_ml, 1e-6) for scan in scans],
    }
    width = median(scan.intensities[-1] - scan.intensities[0] for scan in scans) or 1.0
    intensities = {
        f"intensity p{percent:g}": [scan.intensities[place] / width for scan in scans]
        for place, percent in enumerate(INTENSITY_PERCENTILES)
    }
    return {name: [math.log(length) for length in of] for name, of in lengths.items()} | intensities


def _sides_mm(scan: ScanFacts) -> list[float]:
    return [side * step for side, step in zip(scan.shape, scan.spacing_mm, strict=True)]


def _group(name: str, subjects: Sequence[str], has: Mapping[str, set[str]], organs: Sequence[str]) -> PresenceGroup:
    having = {organ: sum(organ in has[subject] for subject in subjects) for organ in organs}
    return PresenceGroup(name=name, num_subjects=len(subjects), having=having)


def _first_values(labels: LabelTable, column: int) -> dict[str, float]:
    """A subject's first known value, whatever the visit."""
    known: dict[str, float] = {}
    for subject, value in zip(labels.subjects, labels.values[:, column], strict=True):
        if not math.isnan(value):
            known.setdefault(subject, float(value))
    return known


def _split(values: Mapping[str, float], subjects: Sequence[str]) -> dict[str, list[str]]:
    """Subjects by value, or by quarter where there are many values; those without one last."""
    known = [subject for subject in subjects if subject in values]
    distinct = sorted({values[subject] for subject in known})
    groups: dict[str, list[str]] = {}
    if len(distinct) <= _MOST_VALUES:
        groups = {f"{value:g}": [s for s in known if values[s] == value] for value in distinct}
    else:
        edges = [float(edge) for edge in np.quantile([values[s] for s in known], (0, 0.25, 0.5, 0.75, 1))]
        for low, high in pairwise(edges):
            last = high == edges[-1]
            inside = [s for s in known if low <= values[s] < high or (last and values[s] == high)]
            groups[f"{low:g} to {high:g}"] = inside
    groups["unknown"] = [subject for subject in subjects if subject not in values]
    return {text: members for text, members in groups.items() if members}


def subjects_with(report: CheckReport, organ: str) -> int:
    """Subjects with a usable scan of an organ."""
    return sum(organ in has for has in presence(report).values())


def grid_ranges(report: CheckReport, organ: str) -> tuple[str, str]:
    """Finest to coarsest spacing (millimetres) and fewest to most voxels along an axis of an organ's usable scans, as text."""
    facts = [scan.facts for scan in report.scans if scan.organ == organ and scan.facts is not None]
    return _range([step for fact in facts for step in fact.spacing_mm]), _range(
        [n for fact in facts for n in fact.shape]
    )


def _range(values: Sequence[float]) -> str:
    low, high = (f"{edge(values):.3g}" for edge in (min, max)) if values else ("", "")
    return low if low == high else f"{low} to {high}"
