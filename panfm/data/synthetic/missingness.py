"""Which organs of a subject were not imaged, and why: at random, by age, or by an illness nobody has recorded.

`logit P(organ o is missing) = alpha_o + beta * driver_o`. The driver is nothing (MCAR), standardised age, which is
known (MAR), or the latent severity of the processes that show in organ o (MNAR). A subject with no organ left is drawn again:
nobody is in the cohort without a scan. The intercepts are calibrated numerically so that, this redraw included, each
organ is missing at the same marginal rate under each mechanism, and only the mechanism differs.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import expit, logit

from panfm.config import Missingness
from panfm.data.synthetic.factors import (
    FACTORS,
    PROCESSES,
    Factors,
    Floats,
    factor_covariance,
    reference_population,
    standardised,
)
from panfm.data.synthetic.traits import traits_of
from panfm.errors import ConfigError
from panfm.randomness import stream

DRIVER_SLOPE: dict[Missingness, float] = {Missingness.mcar: 0.0, Missingness.mar: 1.2, Missingness.mnar: 1.2}
"""beta: log-odds of a missing organ per standard deviation of the driver; 1.2 makes it 3.3 times as likely (odds)."""


@lru_cache(maxsize=32)
def severity_weights(organ: str) -> Floats:
    """Weights (9,) on the factors whose sum is the unit-variance severity of the processes that show in an organ.

    Each process counts by the absolute loadings of the organ's traits on it; ageing, adiposity and sex do not count.
    """
    weights = np.zeros(len(FACTORS))
    for trait in traits_of(organ):
        for factor, loading in trait.loadings.items():
            if factor in PROCESSES:
                weights[FACTORS.index(factor)] += abs(loading)
    scaled: Floats = weights / np.sqrt(weights @ factor_covariance() @ weights)
    return scaled


def severity(organ: str, factors: Floats) -> Floats:
    """Latent severity in one organ: factors (..., 9) -> (...), mean 0 and variance 1 over the population."""
    latent: Floats = factors @ severity_weights(organ)
    return latent


def _drivers(mechanism: Missingness, organs: tuple[str, ...], ages_years: Floats, factors: Floats) -> Floats:
    """Drivers (n, organs) of ages (n,) and factors (n, 9)."""
    if mechanism is Missingness.mnar:
        return np.stack([severity(organ, factors) for organ in organs], axis=1)
    return np.repeat(standardised(ages_years)[:, None], len(organs), axis=1)


def _missing_given_one_kept(chances: Floats) -> Floats:
    """Chances (n, organs) that each organ is missing, given that not all are."""
    none_left = np.prod(chances, axis=1, keepdims=True)
    kept: Floats = (chances - none_left) / (1.0 - none_left)
    return kept


@dataclass(frozen=True, slots=True)
class MissingnessModel:
    """A mechanism with its calibrated intercepts, for sites that image these organs."""

    mechanism: Missingness
    organs: tuple[str, ...]
    alphas: tuple[float, ...]

    def chances(self, ages_years: Floats, factors: Floats) -> Floats:
        """Chance of each organ to be missing before the redraw: ages (n,), factors (n, 9) -> (n, organs)."""
        drivers = _drivers(self.mechanism, self.organs, ages_years, factors)
        chances: Floats = expit(np.array(self.alphas) + DRIVER_SLOPE[self.mechanism] * drivers)
        return chances

    def present(self, seed: int, subject: int, factors: Factors) -> tuple[str, ...]:
        """The organs that the subject keeps, at least one, in the order of `organs`."""
        if not self.alphas:
            return self.organs
        rng = stream(seed, "subject", subject, "missing")
        chances = self.chances(np.array([factors.age_years]), factors.values[None])[0]
        missing = rng.random(len(self.organs)) < chances
        while missing.all():
            missing = rng.random(len(self.organs)) < chances
        return tuple(organ for organ, gone in zip(self.organs, missing, strict=True) if not gone)


@lru_cache(maxsize=64)
def calibrate(mechanism: Missingness, organs: tuple[str, ...], missing_rate: float) -> MissingnessModel:
    """The mechanism under which each of the organs is missing in `missing_rate` of the population.

    A site that images one organ has only subjects with that organ, so the rate does not apply to it.

    Raises: ConfigError when the rate cannot be held because each subject keeps one organ: it must be below
        (organs - 1) / organs.
    """
    if missing_rate == 0 or len(organs) == 1:
        return MissingnessModel(mechanism, organs, ())
    limit = (len(organs) - 1) / len(organs)
    if not 0 < missing_rate < limit:
        raise ConfigError(
            f"cohort.missing_rate must be in 0 to {limit:.3g} for a site with {len(organs)} organs, for each subject "
            f"keeps at least one of them; got {missing_rate}; lower it or give the site more organs"
        )
    drivers = DRIVER_SLOPE[mechanism] * _drivers(mechanism, organs, *reference_population())
    alphas = np.full(len(organs), logit(missing_rate))
    for _ in range(200):
        rates = _missing_given_one_kept(expit(alphas + drivers)).mean(axis=0)
        if np.abs(rates - missing_rate).max() < 1e-5:
            return MissingnessModel(mechanism, organs, tuple(float(alpha) for alpha in alphas))
        alphas = alphas + logit(missing_rate) - logit(rates)
    raise ConfigError(
        f"cohort.missing_rate {missing_rate} is too near its limit {limit:.3g} for a site with {len(organs)} organs "
        f"under {mechanism.value}; lower it or give the site more organs"
    )
