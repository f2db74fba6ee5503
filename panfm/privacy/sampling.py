"""Which subjects take part in a step: each one by a coin of its own (Poisson sampling), thrown by the operating system.

The accountants charge exactly this and nothing else: shuffled batches of a fixed size are not covered, and neither is a
loader whose rate follows from a batch size and the number of subjects. A sample may be empty. Its step is taken all the same,
with noise and nothing else, and counts: leaving it out would tell that it was empty.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_BITS = 63
T = TypeVar("T")


def poisson_sample(num_subjects: int, sampling_rate: float) -> npt.NDArray[np.int64]:
    """Places of the subjects that take part in one step, in order; perhaps none.

    Args:
        sampling_rate: chance of each subject. It is realised to within 2**-63, and never exceeded.
    """
    return chosen(np.frombuffer(os.urandom(8 * num_subjects), dtype="<u8"), sampling_rate)


def chosen(words: npt.NDArray[np.uint64], sampling_rate: float) -> npt.NDArray[np.int64]:
    """The places whose random word, one for each subject, falls below the rate."""
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"a sampling rate must be above 0 and at most 1, got {sampling_rate}")
    below = np.uint64(int(sampling_rate * 2.0**_BITS))  # a power of two moves no digit, so the product is exact
    return np.flatnonzero((words >> np.uint64(64 - _BITS)) < below)


def physical_batches(sample: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """A sample in parts that fit into memory; none for an empty sample, whose step is noise alone.

    The clipped sums of the parts add up to that of the sample, so that the noise is added once and the result is the same.
    """
    if most < 1:
        raise ValueError(f"a physical batch holds at least 1 subject, got {most}")
    for start in range(0, len(sample), most):
        yield sample[start : start + most]
