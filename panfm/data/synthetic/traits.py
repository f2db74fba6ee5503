"""What each factor does to each organ: the traits that are drawn into the volumes, and what could be known from them.

A trait is a unit-variance number, `z = sum of loading * factor + own part`, that moves one visible thing of one organ
(`look`). The own part is anatomy that means nothing. Because everything up to here is linear and nearly Gaussian, the
best linear reading of a factor from perfectly measured traits has a closed form (`linear_ceiling`).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from panfm.data.synthetic.factors import AGE_TO_AGEING, FACTORS, Factors, Floats, factor_covariance, weights_vector
from panfm.randomness import stream

DRAWN_LIMIT = 2.5
"""A trait is drawn as if it lay within this many standard deviations, so that every organ fits its grid."""


@dataclass(frozen=True, slots=True)
class Trait:
    """One visible thing of one organ, and the factors behind it."""

    organ: str
    name: str
    look: str
    loadings: Mapping[str, float]

    @property
    def own_part(self) -> float:
        """Standard deviation of what no factor explains."""
        weights = weights_vector(self.loadings)
        return math.sqrt(1.0 - float(weights @ factor_covariance() @ weights))


TRAITS: tuple[Trait, ...] = (
    Trait("brain", "size", "size of the whole brain", {"sex": 0.50, "ageing": -0.15}),
    Trait("brain", "ventricles", "size of the ventricles", {"ageing": 0.55, "degenerative": 0.25}),
    Trait("brain", "sulci", "width of the sulci between the folds", {"ageing": 0.40, "degenerative": 0.35}),
    Trait("brain", "lesions", "number and size of dark spots near the ventricles", {"vascular": 0.55, "ageing": 0.20}),
    Trait("brain", "hippocampus", "size of two small bodies deep in the temporal lobes", {"degenerative": -0.65}),
    Trait("heart", "size", "size of the whole heart", {"adiposity": 0.55, "sex": 0.55}),
    Trait("heart", "wall", "thickness of the left ventricle's wall", {"vascular": 0.70, "adiposity": 0.20}),
    Trait("heart", "cavity", "width of the left ventricle's cavity", {"ageing": -0.45, "degenerative": -0.30}),
    Trait("heart", "scar", "brightness and grain of the wall", {"fibrotic": 0.50, "ageing": 0.35}),
    Trait("adipose", "ring", "thickness of the fat ring under the skin", {"adiposity": 0.90, "sex": -0.30}),
    Trait(
        "adipose", "visceral", "share of fat between the bowels", {"metabolic": 0.55, "adiposity": 0.30, "sex": 0.20}
    ),
    Trait("adipose", "muscle", "thickness of the muscle wall", {"ageing": -0.60, "sex": 0.35}),
    Trait("adipose", "septa", "grain of the fat", {"inflammatory": 0.45}),
    Trait("liver", "size", "size of the liver", {"adiposity": 0.35, "sex": 0.30}),
    Trait("liver", "fat", "brightness of the tissue against its vessels", {"metabolic": 0.65, "adiposity": 0.15}),
    Trait("liver", "nodules", "bumps of the surface and coarse grain of the tissue", {"fibrotic": 0.65}),
    Trait("liver", "lesions", "number and size of dark round lesions", {"proliferative": 0.50}),
    Trait("kidney", "size", "size of the kidney", {"sex": 0.30, "metabolic": 0.25, "ageing": -0.20}),
    Trait("kidney", "cortex", "thickness of the cortex", {"vascular": -0.50, "ageing": -0.25}),
    Trait("kidney", "contrast", "contrast of cortex and medulla", {"inflammatory": -0.55}),
    Trait("kidney", "lesions", "number and size of cysts", {"proliferative": 0.50, "ageing": 0.20}),
    Trait("spleen", "size", "size of the spleen", {"fibrotic": 0.45, "inflammatory": 0.30, "sex": 0.10}),
    Trait("spleen", "grain", "coarseness of the grain", {"inflammatory": 0.65}),
    Trait("spleen", "lesions", "number and size of dark lesions", {"proliferative": 0.40}),
    Trait("pancreas", "size", "thickness of head, body and tail", {"ageing": -0.45, "degenerative": -0.20}),
    Trait("pancreas", "lobules", "depth of the lobes on the surface", {"ageing": 0.35, "metabolic": 0.35}),
    Trait("pancreas", "fat", "bright specks of fat between the lobes", {"metabolic": 0.55, "adiposity": 0.20}),
    Trait("pancreas", "duct", "width of the duct", {"fibrotic": 0.55}),
)
"""Every trait. Ring, heart size and wall are large and global, the easy signals; the others are small or local."""


def traits_of(organ: str) -> tuple[Trait, ...]:
    """The traits drawn into one organ, in the order of TRAITS."""
    return tuple(trait for trait in TRAITS if trait.organ == organ)


def draw_traits(seed: int, subject: int, organ: str, factors: Factors) -> dict[str, float]:
    """Trait values of one organ of one subject, by name; they depend on no other organ."""
    own = stream(seed, "subject", subject, organ, "traits").standard_normal(len(traits_of(organ)))
    return {
        trait.name: float(weights_vector(trait.loadings) @ factors.values + trait.own_part * noise)
        for trait, noise in zip(traits_of(organ), own, strict=True)
    }


def loading_matrix(organs: Iterable[str]) -> tuple[Floats, Floats]:
    """Loadings (traits, 9) and own variances (traits,) of all traits of the organs."""
    traits = [trait for organ in organs for trait in traits_of(organ)]
    return np.array([weights_vector(t.loadings) for t in traits]), np.array([t.own_part**2 for t in traits])


def linear_reader(organs: Iterable[str]) -> Floats:
    """Matrix R (9, traits) of the best linear estimate of the factors, R @ traits (regression on perfect traits)."""
    loadings, own = loading_matrix(organs)
    covariance = factor_covariance()
    traits_covariance = loadings @ covariance @ loadings.T + np.diag(own)
    return np.asarray(np.linalg.solve(traits_covariance, loadings @ covariance).T, np.float64)


def linear_ceiling(organs: Iterable[str]) -> dict[str, float]:
    """R2 of the best linear reading of each factor, and of age, from the perfectly measured traits of the organs.

    Posing, scanner and voxels only take away from it. Age is read through ageing alone: its R2 is 0.85^2 of ageing's.
    """
    chosen = tuple(organs)
    explained = np.diag(linear_reader(chosen) @ loading_matrix(chosen)[0] @ factor_covariance())
    ceiling = {factor: float(value) for factor, value in zip(FACTORS, explained, strict=True)}
    return ceiling | {"age": AGE_TO_AGEING**2 * ceiling["ageing"]}
