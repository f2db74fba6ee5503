"""Which subjects a round's steps see: pass after pass over everybody, or more often those who have a rare organ.

Both are functions of a generator alone, so the batches of a round are known before the first one is read.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def batch_indices(
    num_subjects: int, batch_size: int, num_steps: int, generator: np.random.Generator
) -> list[list[int]]:
    """Subjects of each step: pass after pass over all of them, newly shuffled, nobody twice in one batch.

    Args:
        num_subjects: subjects of the dataset, at least 1.
        batch_size: subjects a step; with fewer subjects, all of them.
        num_steps: batches to return.
        generator: shuffles the passes.
    """
    size = min(batch_size, num_subjects)
    waiting: list[int] = []
    batches = []
    for _ in range(num_steps):
        batch, waiting = waiting[:size], waiting[size:]
        if len(batch) < size:
            # The pass ends inside this batch: those it already holds wait for a later batch of the new pass.
            shuffled = [int(index) for index in generator.permutation(num_subjects)]
            fresh = [index for index in shuffled if index not in batch][: size - len(batch)]
            waiting = [index for index in shuffled if index not in fresh]
            batch += fresh
        batches.append(batch)
    return batches


def balanced_indices(
    organs_of: Sequence[Collection[str]], batch_size: int, num_steps: int, generator: np.random.Generator
) -> list[list[int]]:
    """Subjects of each step, drawn by `rarity`: nobody twice in one batch, each batch drawn anew.

    Args:
        organs_of: the organs of each subject, at least one subject with one organ or more.
        batch_size: subjects a step; with fewer subjects who have an organ, all of those.
        num_steps: batches to return.
        generator: draws without replacement, one subject after the other, by what is left of the weights.
    """
    weights = rarity(organs_of)
    size = min(batch_size, int(np.count_nonzero(weights)))
    return [
        [int(index) for index in generator.choice(len(weights), size, replace=False, p=weights)]
        for _ in range(num_steps)
    ]


def rarity(organs_of: Sequence[Collection[str]]) -> NDArray[np.float64]:
    """Chance of each subject to be drawn first: the sum, over its organs, of 1 / subjects that have the organ; sums to 1.

    Where everybody has a single organ, each organ is drawn equally often, however few have it. Where somebody has several,
    a common organ still comes along with the rare ones; nothing is left out to even that.
    """
    subjects = Counter(organ for organs in organs_of for organ in organs)
    weights = np.array([sum(1 / subjects[organ] for organ in sorted(organs)) for organs in organs_of], dtype=np.float64)
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances
