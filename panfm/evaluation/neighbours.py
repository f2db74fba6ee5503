"""k nearest neighbours: what a subject's most similar probe subjects have, which asks nothing of a fit.

Beside the linear probe it shows whether the embedding as it is puts like to like. Weighted votes by cosine similarity, as
the DINO evaluation has them (Caron et al. 2021, arXiv:2104.14294; Wu et al. 2018, arXiv:1805.01978); features are standardised
on the probe subjects first, for the parts of an embedding differ in scale by far more than those of an image model.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from panfm.evaluation.probes import Floats

NEIGHBOURS = 20
"""As in the DINO evaluation; fewer where there are fewer probe subjects."""
TEMPERATURE = 0.07
"""A neighbour's vote is exp(cosine similarity / this)."""


def neighbour_scores(train: NDArray[np.floating], targets: Floats, test: NDArray[np.floating]) -> Floats:
    """The weighted mean of a subject's nearest probe subjects.

    Args:
        train: [m, F] embeddings of probe subjects.
        targets: [targets, m]; NaN where unknown, those subjects are nobody's neighbours for that target.
        test: [n, F].
    Returns: [targets, n].
    """
    scaler = StandardScaler().fit(train)
    train, test = scaler.transform(train), scaler.transform(test)
    predicted = np.empty((len(targets), len(test)))
    known = np.isfinite(targets)
    for pattern in np.unique(known, axis=0):
        rows = np.flatnonzero((known == pattern).all(1))
        places, votes = _votes(train[pattern], test)
        predicted[rows] = (targets[rows][:, pattern][:, places] * votes).sum(-1)
    return predicted


def _votes(train: NDArray[np.floating], test: NDArray[np.floating]) -> tuple[NDArray[np.int64], Floats]:
    """Places of each test subject's neighbours and their votes, which sum to 1; [n, k] each."""
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(train)), metric="cosine").fit(train)
    distances, places = search.kneighbors(test)
    votes = np.exp((distances.min(1, keepdims=True) - distances) / TEMPERATURE)
    return places, votes / votes.sum(1, keepdims=True)
