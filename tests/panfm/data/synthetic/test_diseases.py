"""The labels: categories hold their diseases, prevalences are kept, and the stated AUC is what an oracle reaches."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import panfm.data.synthetic as cohort
from panfm.data.synthetic.diseases import CATEGORIES, DISEASES, LABELS, bayes_auc, draw_labels, expected_auc, true_risks
from panfm.data.synthetic.factors import draw_factors, reference_population
from panfm.organs import SEVEN_ORGANS

SUBJECTS = 4000


@pytest.fixture(scope="module")
def drawn() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Factors (n, 9) and labels (n, 27) of subjects drawn as the writer draws them."""
    people = [draw_factors(21, i) for i in range(SUBJECTS)]
    labels = [list(draw_labels(21, i, person).values()) for i, person in enumerate(people)]
    return np.array([person.values for person in people]), np.array(labels)


def test_there_are_13_categories_and_14_diseases_within_them() -> None:
    assert (len(CATEGORIES), len(DISEASES)) == (13, 14)
    assert {disease.category for disease in DISEASES.values()} <= set(CATEGORIES)
    assert all(name.startswith("cat_") for name in CATEGORIES)
    assert all(name.startswith("dx_") for name in DISEASES)


def test_a_disease_implies_its_category(drawn: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    for name, disease in DISEASES.items():
        assert np.all(drawn[1][:, LABELS.index(name)] <= drawn[1][:, LABELS.index(disease.category)])


def test_prevalences_are_the_stated_ones(drawn: tuple[NDArray[np.float64], NDArray[np.int64]]) -> None:
    risks = true_risks(reference_population()[1])
    for name, disease in DISEASES.items():
        assert risks[:, LABELS.index(name)].mean() == pytest.approx(disease.condition.prevalence, abs=1e-6)
    expected = risks.mean(axis=0)
    band = 4.5 * np.sqrt(expected * (1 - expected) * (1 / SUBJECTS + 1 / len(risks)))
    assert np.all(np.abs(drawn[1].mean(axis=0) - expected) < band)


def test_expected_auc_is_the_mean_of_the_ordinary_auc() -> None:
    rng = np.random.default_rng(3)
    scores, risks = rng.integers(0, 20, 3000) / 20, rng.random(3000) * 0.6
    risks = 0.5 * risks + 0.4 * scores
    aucs = [roc_auc_score(rng.random(3000) < risks, scores) for _ in range(60)]
    assert expected_auc(scores, risks) == pytest.approx(np.mean(aucs), abs=4 * np.std(aucs) / np.sqrt(60) + 1e-4)


@pytest.mark.parametrize("label", ["dx_cirrhosis", "dx_hypertension", "cat_skin", "cat_circulatory"])
def test_a_logistic_regression_on_the_factors_reaches_the_stated_auc(
    label: str, drawn: tuple[NDArray[np.float64], NDArray[np.int64]]
) -> None:
    factors, labels = drawn[0], drawn[1][:, LABELS.index(label)]
    half = SUBJECTS // 2
    scores = LogisticRegression().fit(factors[:half], labels[:half]).decision_function(factors[half:])
    ill, well = labels[half:].sum(), (1 - labels[half:]).sum()
    band = 4 * np.sqrt(0.25 / min(ill, well))  # Hanley and McNeil's error stays below sqrt(auc (1 - auc) / cases)
    assert roc_auc_score(labels[half:], scores) == pytest.approx(bayes_auc(label), abs=min(band, 0.05))


def test_nobody_reads_more_from_organs_than_the_factors_hold() -> None:
    for label in LABELS[::4]:
        some, every, perfect = bayes_auc(label, ["heart"]), bayes_auc(label, SEVEN_ORGANS), bayes_auc(label)
        assert 0.5 < some <= every < perfect < 0.95


def test_the_docstring_states_the_mean_auc() -> None:
    means = [
        np.mean([bayes_auc(label, organs) for label in CATEGORIES])
        for organs in (None, SEVEN_ORGANS, ("adipose", "heart"))
    ]
    for mean in means:
        assert f"{mean:.3f}" in (cohort.__doc__ or "")
