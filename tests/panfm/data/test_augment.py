"""Augmented intensities follow the stated law, and each subject's own generator alone."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from panfm.config import AugmentConfig, OrganAugmentConfig, OrganGrid
from panfm.data.augment import augment, moved
from panfm.data.augment_intensity import add_bias, blur, gamma
from panfm.data.augment_spatial import affine_matrices, flip, warp
from panfm.data.dataset import Batch
from panfm.randomness import stream

ORGANS = ("brain", "heart", "liver")
GRIDS = {organ: OrganGrid(shape=[8, 8, 8], spacing_mm=[2.0, 4.0, 3.0]) for organ in ORGANS}


def _batch(subjects: int = 64, side: int = 8) -> Batch:
    base = torch.linspace(-3, 3, side**3).reshape(1, side, side, side).expand(subjects, -1, -1, -1)
    rows = {"brain": torch.arange(subjects), "heart": torch.arange(0, subjects, 2)}
    volumes = {organ: base[: len(held)].clone() for organ, held in rows.items()}
    return Batch(tuple(f"s{row}" for row in range(subjects)), ORGANS, rows, volumes)


def _streams(batch: Batch, seed: int = 0) -> list[np.random.Generator]:
    return [stream(seed, subject) for subject in batch.subjects]


def test_scale_and_offset_are_one_line_per_volume_within_their_ranges() -> None:
    batch = _batch()
    changed = augment(batch, AugmentConfig(scale=0.2, offset=0.5, noise=0.0), _streams(batch), GRIDS)
    lines = []
    for organ in ("brain", "heart"):
        for before, after in zip(batch.volumes[organ].numpy(), changed.volumes[organ].numpy(), strict=True):
            scale, offset = np.polyfit(before.ravel(), after.ravel(), 1)
            np.testing.assert_allclose(after, scale * before + offset, atol=1e-5)
            lines.append((scale, offset))
    scales, offsets = np.array(lines).T
    assert len({round(float(scale), 6) for scale in scales}) == len(lines), "each volume has its own"
    # 96 uniform draws: beyond 0.9 of the range on both sides but for a chance of 2 x 0.95^96 = 1.5 %; the seed is fixed.
    assert 0.8 <= scales.min() < 0.82
    assert 1.18 < scales.max() <= 1.2
    assert -0.5 <= offsets.min() < -0.45
    assert 0.45 < offsets.max() <= 0.5


def test_noise_has_the_stated_deviation_and_no_memory() -> None:
    batch = _batch(side=16)
    changed = augment(batch, AugmentConfig(scale=0.0, offset=0.0, noise=0.3), _streams(batch), GRIDS)
    noise = {organ: (changed.volumes[organ] - batch.volumes[organ]).flatten(1) for organ in changed.volumes}
    assert noise["brain"].std().item() == pytest.approx(0.3, rel=0.01)
    assert abs(noise["brain"].mean().item()) < 0.002
    correlations = torch.corrcoef(torch.cat([noise["brain"], noise["heart"]])).fill_diagonal_(0)
    assert correlations.abs().max().item() < 0.08  # 4,096 voxels: 5 standard errors


def test_all_zero_is_the_identity_and_the_input_is_left_unchanged() -> None:
    batch = _batch()
    before = {organ: volumes.clone() for organ, volumes in batch.volumes.items()}
    same = augment(batch, AugmentConfig(scale=0.0, offset=0.0, noise=0.0), _streams(batch), GRIDS)
    augment(batch, AugmentConfig(), _streams(batch), GRIDS)
    for organ, volumes in before.items():
        assert torch.equal(same.volumes[organ], volumes)
        assert torch.equal(batch.volumes[organ], volumes)


def test_a_subjects_view_does_not_depend_on_the_others() -> None:
    batch = _batch(6)
    together = augment(batch, AugmentConfig(), _streams(batch), GRIDS)
    alone = Batch(
        ("s4",),
        ORGANS,
        {o: torch.tensor([0]) for o in ("brain", "heart")},
        {o: v[2:3] for o, v in batch.volumes.items()},
    )
    view = augment(alone, AugmentConfig(), _streams(alone), GRIDS)
    assert torch.equal(view.volumes["brain"][0], together.volumes["brain"][4])
    assert torch.equal(view.volumes["heart"][0], together.volumes["heart"][2])


def test_one_generator_per_subject() -> None:
    batch = _batch(3)
    with pytest.raises(ValueError, match="one generator per subject"):
        augment(batch, AugmentConfig(), _streams(batch)[:2], GRIDS)


ALL = AugmentConfig(
    rotation_deg=20,
    zoom=0.1,
    translation_mm=4,
    flip=[0.5, 0.0, 0.5],
    blur_mm=3,
    bias=0.3,
    gamma=0.4,
    scale=0.1,
    noise=0.1,
)


def test_every_change_by_hand_in_its_order() -> None:
    """Draws and order written out for one subject with two organs, from one stream for places and one for intensities."""
    batch = _batch(1)
    spacing = torch.tensor([[2.0, 4.0, 3.0]], dtype=torch.float64)
    place, tone = stream(1), stream(2)
    found = augment(moved(batch, ALL, [stream(1)], GRIDS), ALL, [stream(2)], GRIDS)
    for organ in ("brain", "heart"):
        angles, zoom, shift = (torch.from_numpy(place.uniform(-1, 1, n)) for n in (3, 1, 3))
        wanted = warp(
            batch.volumes[organ], affine_matrices(20 * angles[None], 1 + 0.1 * zoom, spacing), 4 * shift / spacing
        )
        wanted = flip(wanted, torch.from_numpy(place.random((1, 3)) < [0.5, 0.0, 0.5]))
        scale, offset = 1 + 0.1 * tone.uniform(-1, 1), 0.2 * tone.uniform(-1, 1)
        noise = torch.from_numpy(tone.standard_normal((1, 8, 8, 8), dtype=np.float32))
        wanted = blur(wanted, 3 * abs(tone.uniform(-1, 1)) / spacing)
        wanted = add_bias(wanted, torch.from_numpy(0.3 * tone.uniform(-1, 1, (1, 9))))
        wanted = gamma(wanted, torch.from_numpy(np.exp(0.4 * tone.uniform(-1, 1, 1))))
        torch.testing.assert_close(found.volumes[organ], wanted * scale + offset + 0.1 * noise, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [moved, augment])
def test_nothing_of_a_subject_depends_on_the_others_under_every_change(change: Callable[..., Batch]) -> None:
    batch = _batch(4)
    together = change(batch, ALL, _streams(batch), GRIDS)
    rows = {organ: torch.tensor([0]) for organ in ("brain", "heart")}
    alone = Batch(("s2",), ORGANS, rows, {"brain": batch.volumes["brain"][2:3], "heart": batch.volumes["heart"][1:2]})
    view = change(alone, ALL, [stream(0, "s2")], GRIDS)
    torch.testing.assert_close(view.volumes["brain"][0], together.volumes["brain"][2], atol=1e-6, rtol=0)
    torch.testing.assert_close(view.volumes["heart"][0], together.volumes["heart"][1], atol=1e-6, rtol=0)


def test_an_organ_may_be_changed_otherwise_than_the_rest() -> None:
    batch = _batch(3)
    own = {"heart": OrganAugmentConfig(scale=0.0, offset=0.0, noise=0.0)}
    changed = augment(batch, AugmentConfig(organs=own), _streams(batch), GRIDS)
    assert torch.equal(changed.volumes["heart"], batch.volumes["heart"])
    brains = augment(batch, AugmentConfig(), _streams(batch), GRIDS).volumes["brain"]
    assert torch.equal(changed.volumes["brain"], brains), "the brain is drawn first, so its draws stay"


def test_the_defaults_move_nothing() -> None:
    batch = _batch(2)
    still = moved(batch, AugmentConfig(), _streams(batch), GRIDS)
    for organ, volumes in batch.volumes.items():
        assert still.volumes[organ] is volumes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_shows_what_the_cpu_shows() -> None:
    """The same draws, made on the CPU; sums in another order, so to rounding and not to the bit."""
    batch = _batch(4)
    there = augment(moved(batch.to("cuda"), ALL, _streams(batch), GRIDS), ALL, _streams(batch, 1), GRIDS).to("cpu")
    here = augment(moved(batch, ALL, _streams(batch), GRIDS), ALL, _streams(batch, 1), GRIDS)
    for organ, volumes in here.volumes.items():
        torch.testing.assert_close(there.volumes[organ], volumes, atol=1e-4, rtol=1e-4)
