"""The latent factors of a synthetic subject: what makes its organs and its diseases go together.

Nine factors, each of unit variance over the population: general ageing, adiposity, sex and six disease processes, each
of which acts on more than one organ. A process is a weighted sum of ageing, adiposity and sex and of a part of its own
(`PROCESS_CAUSES`), so processes go together as they do in people. Age in years is known; ageing is not: it is
0.85 * standardised age + a part of its own, so no model can know age better than R2 = 0.72.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from panfm.randomness import stream

Floats = NDArray[np.float64]

AGE_RANGE_YEARS = (45.0, 82.0)
"""Ages are uniform in this range: that of the UK Biobank imaging study, rounded."""
AGE_TO_AGEING = 0.85
"""Correlation of age with general ageing."""

PROCESSES: tuple[str, ...] = ("vascular", "metabolic", "fibrotic", "inflammatory", "degenerative", "proliferative")
"""The disease processes."""
FACTORS: tuple[str, ...] = ("ageing", "adiposity", "sex", *PROCESSES)
"""Order of every factor vector; sex is +1 (male) or -1 (female)."""

PROCESS_CAUSES: dict[str, dict[str, float]] = {
    "vascular": {"ageing": 0.40, "adiposity": 0.25, "sex": 0.15},
    "metabolic": {"ageing": 0.10, "adiposity": 0.45, "sex": 0.10},
    "fibrotic": {"ageing": 0.10, "adiposity": 0.15, "sex": 0.10},
    "inflammatory": {"adiposity": 0.20, "sex": -0.15},
    "degenerative": {"ageing": 0.40},
    "proliferative": {"ageing": 0.35, "sex": 0.05},
}
"""What raises each process; the rest of its unit variance is its own."""

POPULATION_SIZE = 20_000
"""Subjects of the fixed reference population on which intercepts are calibrated and ceilings estimated."""


@dataclass(frozen=True, slots=True)
class Factors:
    """The latent state of one subject."""

    age_years: float
    values: Floats
    """Factor values in the order of FACTORS, shape (9,)."""

    @property
    def is_male(self) -> bool:
        return bool(self.values[FACTORS.index("sex")] > 0)


def weights_vector(weights: Mapping[str, float]) -> Floats:
    """Weights by factor name as a vector in the order of FACTORS, shape (9,)."""
    vector = np.zeros(len(FACTORS))
    for factor, weight in weights.items():
        vector[FACTORS.index(factor)] = weight
    return vector


@lru_cache(maxsize=1)
def _mixing() -> Floats:
    """Matrix from nine independent unit roots to the factors, shape (9, 9)."""
    rows = np.eye(len(FACTORS))
    for process, causes in PROCESS_CAUSES.items():
        own = FACTORS.index(process)
        rows[own] = weights_vector(causes)
        rows[own, own] = math.sqrt(1.0 - sum(weight**2 for weight in causes.values()))
    return rows


def factor_covariance() -> Floats:
    """Covariance (= correlation) of the factors over the population, shape (9, 9)."""
    mixing = _mixing()
    return mixing @ mixing.T


def _standardised_age(uniform: Floats) -> Floats:
    return (uniform - 0.5) * math.sqrt(12.0)


def _draw(rng: np.random.Generator, num_subjects: int) -> tuple[Floats, Floats]:
    """Ages in years (n,) and factors (n, 9)."""
    uniform = rng.random(num_subjects)
    roots = rng.standard_normal((num_subjects, len(FACTORS)))
    own = math.sqrt(1.0 - AGE_TO_AGEING**2)
    roots[:, 0] = AGE_TO_AGEING * _standardised_age(uniform) + own * roots[:, 0]
    roots[:, 2] = np.where(roots[:, 2] > 0, 1.0, -1.0)
    low, high = AGE_RANGE_YEARS
    return low + (high - low) * uniform, roots @ _mixing().T


def standardised(age_years: Floats) -> Floats:
    """Ages in standard deviations from the population's mean."""
    low, high = AGE_RANGE_YEARS
    return _standardised_age((age_years - low) / (high - low))


def draw_factors(seed: int, subject: int) -> Factors:
    """The latent state of one subject: a function of the seed and its index alone."""
    ages, values = _draw(stream(seed, "subject", subject, "factors"), 1)
    return Factors(age_years=float(ages[0]), values=values[0])


@lru_cache(maxsize=1)
def reference_population() -> tuple[Floats, Floats]:
    """Ages in years (20000,) and factors (20000, 9) of a fixed population; do not write into them."""
    return _draw(stream(0, "reference population"), POPULATION_SIZE)
