"""Every random stream of a study as a function of what it is for, so that a resumed run draws what it would have drawn.

A stream is keyed by (seed, labels...), for example (seed, site, round, step, subject, purpose). Philox is counter-based
and takes a 128-bit key; torch's CPU generator keeps only 32 bits of its seed and draws differently on a GPU, so draws
are made here, on the CPU, and moved. Privacy noise never comes from here: it comes from the operating system's entropy.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *labels: str | int) -> np.random.Generator:
    """A generator whose draws depend on the seed and on every label, and on nothing else.

    Args:
        seed: root seed of the study.
        labels: what the stream is for, outermost first; 1 and "1" are different labels, 1 and numpy's 1 are the same.
    Raises: ValueError when a label holds the unit separator (U+001F), which divides labels.
    """
    if any("\x1f" in label for label in labels if isinstance(label, str)):
        raise ValueError(f"labels of a stream must not hold U+001F, got {labels!r}")
    words = (f"str:{label}" if isinstance(label, str) else f"int:{int(label)}" for label in labels)
    text = "\x1f".join([str(int(seed)), *words])
    key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
