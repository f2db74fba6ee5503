"""The labels: 14 single diseases and 13 categories (ICD-10 chapters), with risks that are known exactly.

Each disease is a Bernoulli of a logistic of the factors. Each category has a remainder, the chapter's other conditions,
of the same form, and is present when the remainder or one of its diseases is: so a disease implies its category, as
codes do. Given the factors all draws are independent, so that the true risk is the best score there can be, and its
AUC (`bayes_auc`) is finite and known. Prevalences are several times those of a population cohort, so that a few
hundred test subjects hold enough of each class.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import expit, logit

from panfm.data.synthetic.factors import Factors, Floats, reference_population, weights_vector
from panfm.data.synthetic.traits import linear_reader, loading_matrix
from panfm.randomness import stream


@dataclass(frozen=True, slots=True)
class Condition:
    """Something a subject has or has not, with log-odds = intercept + sum of loading * factor."""

    prevalence: float
    """Share of the population that has it; fixes the intercept."""
    loadings: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Category:
    """A chapter of ICD-10."""

    chapter: str
    other: Condition
    """The chapter's conditions that are not among DISEASES."""


@dataclass(frozen=True, slots=True)
class Disease:
    """A single disease within one category."""

    category: str
    icd10: str
    condition: Condition


CATEGORIES: dict[str, Category] = {
    "cat_infectious": Category("A00-B99", Condition(0.25, {"inflammatory": 0.9, "ageing": 0.4, "fibrotic": 0.3})),
    "cat_neoplasms": Category("C00-D48", Condition(0.25, {"proliferative": 1.3, "ageing": 0.4})),
    "cat_blood": Category("D50-D89", Condition(0.15, {"inflammatory": 0.9, "fibrotic": 0.6})),
    "cat_endocrine": Category("E00-E90", Condition(0.20, {"metabolic": 1.0, "adiposity": 0.7})),
    "cat_mental": Category("F00-F99", Condition(0.25, {"degenerative": 0.8, "vascular": 0.4, "sex": -0.3})),
    "cat_nervous": Category("G00-G99", Condition(0.15, {"degenerative": 1.1, "vascular": 0.4})),
    "cat_eye_ear": Category("H00-H95", Condition(0.30, {"ageing": 1.0, "vascular": 0.4, "metabolic": 0.3})),
    "cat_circulatory": Category("I00-I99", Condition(0.15, {"vascular": 1.2, "ageing": 0.4})),
    "cat_respiratory": Category("J00-J99", Condition(0.20, {"inflammatory": 1.0, "adiposity": 0.4})),
    "cat_digestive": Category("K00-K93", Condition(0.20, {"fibrotic": 0.8, "metabolic": 0.6})),
    "cat_skin": Category("L00-L99", Condition(0.25, {"inflammatory": 1.2, "adiposity": 0.3})),
    "cat_musculoskeletal": Category("M00-M99", Condition(0.20, {"ageing": 0.8, "adiposity": 0.6, "inflammatory": 0.4})),
    "cat_genitourinary": Category("N00-N99", Condition(0.25, {"vascular": 0.6, "proliferative": 0.6, "sex": -0.4})),
}
"""The 13 categories; eye and ear, two small chapters, are one."""

DISEASES: dict[str, Disease] = {
    "dx_anaemia": Disease("cat_blood", "D64", Condition(0.10, {"inflammatory": 1.0, "fibrotic": 0.7, "sex": -0.4})),
    "dx_type_2_diabetes": Disease("cat_endocrine", "E11", Condition(0.15, {"metabolic": 1.4, "adiposity": 0.6})),
    "dx_alzheimer_disease": Disease("cat_nervous", "G30", Condition(0.08, {"degenerative": 1.3, "ageing": 0.8})),
    "dx_parkinson_disease": Disease("cat_nervous", "G20", Condition(0.08, {"degenerative": 1.2, "sex": 0.4})),
    "dx_hypertension": Disease("cat_circulatory", "I10", Condition(0.20, {"vascular": 1.3, "adiposity": 0.6})),
    "dx_ischaemic_heart_disease": Disease(
        "cat_circulatory", "I25", Condition(0.12, {"vascular": 1.2, "metabolic": 0.5, "sex": 0.4})
    ),
    "dx_heart_failure": Disease(
        "cat_circulatory", "I50", Condition(0.08, {"vascular": 1.0, "fibrotic": 0.7, "ageing": 0.6})
    ),
    "dx_stroke": Disease("cat_circulatory", "I63", Condition(0.08, {"vascular": 1.2, "ageing": 0.7})),
    "dx_copd": Disease("cat_respiratory", "J44", Condition(0.10, {"inflammatory": 1.1, "ageing": 0.7})),
    "dx_cirrhosis": Disease("cat_digestive", "K74", Condition(0.08, {"fibrotic": 1.8, "metabolic": 0.4})),
    "dx_fatty_liver_disease": Disease("cat_digestive", "K76", Condition(0.15, {"metabolic": 1.5, "adiposity": 0.4})),
    "dx_chronic_pancreatitis": Disease("cat_digestive", "K86", Condition(0.08, {"fibrotic": 1.2, "inflammatory": 0.7})),
    "dx_osteoarthritis": Disease(
        "cat_musculoskeletal", "M15-M19", Condition(0.20, {"ageing": 1.0, "adiposity": 0.9, "sex": -0.2})
    ),
    "dx_chronic_kidney_disease": Disease(
        "cat_genitourinary", "N18", Condition(0.12, {"vascular": 1.0, "inflammatory": 0.7, "ageing": 0.5})
    ),
}
"""The 14 single diseases, in the order of their chapters."""

LABELS: tuple[str, ...] = (*CATEGORIES, *DISEASES)
"""Label columns: the categories, then the diseases."""


def intercept_for(prevalence: float, scores: Floats) -> float:
    """The intercept at which the mean of expit(intercept + score) over `scores` (n,) is the prevalence."""
    intercept = float(logit(prevalence))
    for _ in range(60):  # a fixed point on the log-odds scale: each step closes at least two thirds of the gap here
        intercept += float(logit(prevalence) - logit(expit(intercept + scores).mean()))
    return intercept


@lru_cache(maxsize=1)
def _logistic() -> tuple[Floats, Floats]:
    """Weights (27, 9) and intercepts (27,) of the remainders and the diseases, in the order of LABELS."""
    conditions = [category.other for category in CATEGORIES.values()] + [d.condition for d in DISEASES.values()]
    weights = np.array([weights_vector(condition.loadings) for condition in conditions])
    scores = reference_population()[1] @ weights.T
    intercepts = [intercept_for(c.prevalence, score) for c, score in zip(conditions, scores.T, strict=True)]
    return weights, np.array(intercepts)


@lru_cache(maxsize=1)
def _members() -> tuple[tuple[int, ...], ...]:
    """For each category, the rows of `_logistic` that make it: its remainder and its diseases."""
    first = len(CATEGORIES)
    names = list(DISEASES.values())
    return tuple(
        (row, *(first + k for k, disease in enumerate(names) if disease.category == category))
        for row, category in enumerate(CATEGORIES)
    )


def true_risks(factors: Floats) -> Floats:
    """Probability of each label given the factors: (n, 9) -> (n, 27), columns as in LABELS."""
    weights, intercepts = _logistic()
    parts: Floats = expit(factors @ weights.T + intercepts)
    risks = parts.copy()
    for row, members in enumerate(_members()):
        risks[:, row] = 1.0 - np.prod(1.0 - parts[:, members], axis=1)
    return risks


def draw_labels(seed: int, subject: int, factors: Factors) -> dict[str, int]:
    """Each label of one subject, 0 or 1, in the order of LABELS."""
    weights, intercepts = _logistic()
    drawn = stream(seed, "subject", subject, "labels").random(len(LABELS)) < expit(
        weights @ factors.values + intercepts
    )
    present = drawn.copy()
    for row, members in enumerate(_members()):
        present[row] = drawn[list(members)].any()
    return {label: int(value) for label, value in zip(LABELS, present, strict=True)}


def expected_auc(scores: Floats, risks: Floats) -> float:
    """AUC of scores (n,) when each subject has the label with probability risks (n,); ties count half."""
    _, inverse = np.unique(scores, return_inverse=True)
    ill = np.bincount(inverse, weights=risks)
    well = np.bincount(inverse, weights=1.0 - risks)
    below = np.cumsum(well) - 0.5 * well
    return float(ill @ below / (ill.sum() * well.sum()))


@lru_cache(maxsize=1)
def _reference_risks() -> Floats:
    """True risks of the reference population, (20000, 27)."""
    return true_risks(reference_population()[1])


@lru_cache(maxsize=8)
def _read_risks(organs: tuple[str, ...]) -> Floats:
    """Risks of the reference population at the factors that are read from perfectly measured traits, (20000, 27)."""
    factors = reference_population()[1]
    loadings, own = loading_matrix(organs)
    noise = stream(0, "reference traits").standard_normal((len(factors), len(own)))
    traits = factors @ loadings.T + noise * np.sqrt(own)
    return true_risks(traits @ linear_reader(organs).T)


def bayes_auc(label: str, organs: Iterable[str] | None = None) -> float:
    """The AUC that no model can pass on this label, over the reference population.

    Args:
        label: one of LABELS.
        organs: None for a model that knows the factors themselves; else for one that measures every trait of these
            organs perfectly and reads the factors linearly (exact up to the shape of the age and sex distributions).
    """
    column = LABELS.index(label)
    risks = _reference_risks()[:, column]
    return expected_auc(risks if organs is None else _read_risks(tuple(organs))[:, column], risks)
