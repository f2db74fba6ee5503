"""Every scan hides the same number of patches, each as often as any other, or whole cubes of them."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.config import PatchMaskConfig
from panfm.pretrain.patch_mask import draw_patch_mask, num_hidden
from panfm.randomness import stream

grids = st.tuples(*[st.integers(1, 6)] * 3)


@given(counts=grids, rate=st.floats(0.01, 0.99), block=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_scan_hides_as_many(counts: tuple[int, int, int], rate: float, block: int, seed: int) -> None:
    total = int(np.prod(counts))
    mask = draw_patch_mask(counts, PatchMaskConfig(rate=rate, block=block), stream(seed))
    assert mask.dtype == np.bool_
    assert (mask.shape, int(mask.sum())) == ((total,), num_hidden(total, rate))


@pytest.mark.parametrize(
    ("patches", "rate", "hidden"), [(64, 0.6, 38), (10, 0.01, 1), (10, 0.99, 9), (2, 0.1, 1), (2, 0.9, 1), (1, 0.6, 0)]
)
def test_how_many_are_hidden(patches: int, rate: float, hidden: int) -> None:
    assert num_hidden(patches, rate) == hidden


def test_patches_are_hidden_equally_often() -> None:
    """4,000 draws, and a bound of 5 standard deviations on each of 64 frequencies."""
    generator, config = stream(0), PatchMaskConfig(rate=0.5)
    often = np.mean([draw_patch_mask((4, 4, 4), config, generator) for _ in range(4000)], axis=0)
    assert np.abs(often - 0.5).max() < 5 * (0.25 / 4000) ** 0.5


@pytest.mark.parametrize("block", [2, 3])
def test_blocks_hide_whole_cubes_but_for_one(block: int) -> None:
    """For some placement of the lattice of cubes, at most one cube is hidden in part."""
    for seed in range(50):
        mask = draw_patch_mask((6, 6, 6), PatchMaskConfig(rate=0.4, block=block), stream(seed)).reshape(6, 6, 6)
        cut = []
        for shift in itertools.product(range(block), repeat=3):
            cells = np.stack([(np.indices((6, 6, 6))[axis] + shift[axis]) // block for axis in range(3)], axis=-1)
            states: dict[tuple[int, ...], set[bool]] = {}
            for cell, hidden in zip(map(tuple, cells.reshape(-1, 3)), mask.flatten(), strict=True):
                states.setdefault(cell, set()).add(bool(hidden))
            cut.append(sum(len(state) == 2 for state in states.values()))
        assert min(cut) <= 1


def test_the_generator_decides() -> None:
    config = PatchMaskConfig()
    draws = [draw_patch_mask((4, 4, 4), config, stream(seed)).tobytes() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
