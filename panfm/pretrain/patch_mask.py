"""Which patches of a scan are hidden from the student, who must predict the teacher's features of them.

Every scan hides the same number of patches, round(rate * patches), so that the loss of a scan has a fixed denominator.
With `block` above 1, cubes of patches are hidden together, which makes copying from neighbours harder.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from panfm.config import PatchMaskConfig


def num_hidden(num_patches: int, rate: float) -> int:
    """How many of an organ's patches are hidden: at least one, at most all but one (a single patch is never hidden)."""
    return min(max(round(rate * num_patches), 1), num_patches - 1)


def draw_patch_mask(
    counts: tuple[int, int, int], config: PatchMaskConfig, draws: np.random.Generator
) -> NDArray[np.bool_]:
    """Hidden patches of one scan.

    Args:
        counts: patches along X, Y, Z.
        draws: the subject's generator for patch masks.
    Returns: bool [T] in the order of `panfm.models.patch_embed.cut_patches`, exactly `num_hidden` of them True.
    """
    priority = _block_priority(counts, config.block, draws) if config.block > 1 else draws.random(int(np.prod(counts)))
    hidden = np.zeros(priority.size, dtype=np.bool_)
    hidden[np.argsort(priority, kind="stable")[: num_hidden(priority.size, config.rate)]] = True
    return hidden


def _block_priority(counts: tuple[int, int, int], block: int, draws: np.random.Generator) -> NDArray[np.float64]:
    """Cubes of a randomly placed lattice share a random priority; inside the last, cut cube single patches decide."""
    axes = [(np.arange(count) + draws.integers(block)) // block for count in counts]
    cells = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    return draws.permutation(int(cell.max()) + 1)[cell.reshape(-1)] + draws.random(len(cells))
