"""Nearest neighbours against the definition, subject by subject."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

from panfm.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, neighbour_scores


@pytest.mark.parametrize("number", [8, 60])
def test_scores_are_weighted_votes_of_the_most_similar(number: int) -> None:
    draws = np.random.default_rng(4)
    train, test = draws.normal(size=(number, 5)) * [1, 100, 1, 1, 3], draws.normal(size=(6, 5)) * [1, 100, 1, 1, 3]
    targets = draws.integers(2, size=(2, number)).astype(float)
    targets[1, ::3] = np.nan
    found = neighbour_scores(train, targets, test)
    scaled, other = ((part - train.mean(0)) / train.std(0) for part in (train, test))
    for column, target in enumerate(targets):
        for place, subject in enumerate(other):
            known = [i for i in range(number) if np.isfinite(target[i])]
            similarity = {i: scaled[i] @ subject / np.linalg.norm(scaled[i]) / np.linalg.norm(subject) for i in known}
            nearest = sorted(known, key=lambda i: -similarity[i])[:NEIGHBOURS]
            votes = np.array([np.exp(similarity[i] / TEMPERATURE) for i in nearest])
            assert found[column, place] == pytest.approx((votes * target[nearest]).sum() / votes.sum())


def test_a_twin_among_the_probe_subjects_wins() -> None:
    draws = np.random.default_rng(5)
    train = draws.normal(size=(40, 30))
    label = draws.integers(2, size=40).astype(float)
    assert np.abs(neighbour_scores(train, label[None], train)[0] - label).max() < 0.1
