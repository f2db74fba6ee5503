"""A step's release: parts add up to the sample, an empty sample is noise alone, views are averaged before anything is clipped."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from panfm.config import PrivacyConfig
from panfm.privacy.dp_step import mean_of_views, noised_mean

LIKE = {"weight": torch.zeros(20, 30), "of an absent organ": torch.zeros(500)}
ROWS = {"weight": torch.randn(5, 20, 30, generator=torch.Generator().manual_seed(0))}


def part(first: int, stop: int) -> tuple[range, object]:
    return range(first, stop), lambda: {name: rows[first:stop] for name, rows in ROWS.items()}


def released(*bounds: tuple[int, int], noise: float = 1e-12, clip: float = 1.0) -> dict[str, Tensor]:
    privacy = PrivacyConfig(clip_norm=clip, noise_multiplier=noise, denominator=4.0)
    return noised_mean([part(*one) for one in bounds], LIKE, privacy)  # type: ignore[misc]  # made for this


def test_parts_add_up_to_the_clipped_mean() -> None:
    slow = sum((row / max(1.0, float(row.norm())) for row in ROWS["weight"]), start=torch.zeros(20, 30)) / 4.0
    for bounds in ([(0, 5)], [(0, 2), (2, 4), (4, 5)]):
        found = released(*bounds)
        torch.testing.assert_close(found["weight"], slow, rtol=1e-5, atol=1e-6)
        assert float(found["of an absent organ"].abs().max()) < 1e-11


def test_noise_is_of_the_clip_norm_over_the_denominator_also_for_nobody() -> None:
    for bounds in ([], [(0, 5)]):
        found = released(*bounds, noise=300.0, clip=0.5)
        for tensor in found.values():
            assert float(tensor.std()) == pytest.approx(300.0 * 0.5 / 4.0, rel=5 / math.sqrt(2 * tensor.numel()))


def test_subject_in_two_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        released((0, 3), (2, 5))


def test_views_are_averaged_before_the_clip() -> None:
    found = mean_of_views([ROWS, {"weight": -ROWS["weight"]}, {"weight": torch.ones(5, 20, 30)}])
    torch.testing.assert_close(found["weight"], torch.full((5, 20, 30), 1 / 3))
    assert mean_of_views([ROWS])["weight"] is ROWS["weight"]
