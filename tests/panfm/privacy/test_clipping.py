"""No subject adds more than the clip norm, whatever its gradient; parts add up to the whole; a sum is released once."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from panfm.privacy import clipping
from panfm.privacy.clipping import ClippedSum, clip_factors, row_norms

SHAPES = {"adapter.down": (4, 3), "adapter.bias": (3,), "scale": ()}
LIKE = {name: torch.zeros(shape) for name, shape in SHAPES.items()}


def gradients(
    num_subjects: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn((num_subjects, *shape), generator=generator) * scale).to(dtype)
        for name, shape in SHAPES.items()
    }


def slow_sum(rows: dict[str, Tensor], clip_norm: float) -> dict[str, Tensor]:
    """The oracle: subject by subject, in double precision."""
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for subject in range(len(rows["scale"])):
        own = {name: tensor[subject].double() for name, tensor in rows.items()}
        norm = math.sqrt(sum(float((tensor**2).sum()) for tensor in own.values()))
        for name, tensor in own.items():
            total[name] += tensor * min(1.0, clip_norm / norm if norm else 1.0)
    return total


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clipping, "all_noised", lambda sums, std: dict(sums))


def summed(rows: dict[str, Tensor], clip_norm: float, first: int = 0) -> dict[str, Tensor]:
    """By the production path, the noise taken away."""
    clipped = ClippedSum(LIKE, clip_norm)
    clipped.add(rows, range(first, first + len(rows["scale"])))
    return clipped.release(1.0, 1.0)


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 1e6])
def test_sum_is_the_slow_one(scale: float) -> None:
    rows = gradients(6, scale=scale)
    found, slow = summed(rows, 0.7), slow_sum(rows, 0.7)
    for name, tensor in found.items():
        assert torch.allclose(tensor.double(), slow[name], rtol=3e-6, atol=3e-6 * scale if scale < 0.7 else 2e-6)


@pytest.mark.usefixtures("without_noise")
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.floats(-20, 18),
    clip_norm=st.floats(1e-3, 1e3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_no_subject_adds_more_than_the_clip_norm(
    seed: int, exponent: float, clip_norm: float, dtype: torch.dtype
) -> None:
    rows = gradients(1, seed, 10**exponent, dtype)
    added = summed(rows, clip_norm)
    norm = math.sqrt(sum(float((tensor.double() ** 2).sum()) for tensor in added.values()))
    assert norm <= clip_norm


@pytest.mark.usefixtures("without_noise")
def test_gradient_below_the_clip_norm_is_left_as_it_is() -> None:
    rows = gradients(1, scale=0.01)
    assert all(torch.equal(tensor, rows[name][0]) for name, tensor in summed(rows, 1.0).items())


@pytest.mark.usefixtures("without_noise")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_subject_whose_gradient_is_not_finite_counts_as_a_null_record(value: float) -> None:
    rows = gradients(3)
    rows["scale"][1] = value
    others = {name: tensor[[0, 2]] for name, tensor in rows.items()}
    found = summed(rows, 1.0)
    for name, tensor in summed(others, 1.0).items():
        assert torch.allclose(found[name], tensor, atol=1e-7)


@pytest.mark.usefixtures("without_noise")
def test_gradient_whose_square_overflows_in_single_precision_is_still_clipped() -> None:
    rows = {name: torch.full_like(tensor, 1e30) for name, tensor in gradients(1).items()}
    assert float(torch.cat([tensor.flatten() for tensor in summed(rows, 1.0).values()]).norm()) == pytest.approx(1.0)


@pytest.mark.usefixtures("without_noise")
@given(st.lists(st.integers(0, 8), max_size=3))
@settings(max_examples=20, deadline=None)
def test_parts_add_up_to_the_whole(cuts: list[int]) -> None:
    rows, edges = gradients(8), [0, *sorted(cuts), 8]
    clipped = ClippedSum(LIKE, 0.5)
    for start, end in pairwise(edges):
        clipped.add({name: tensor[start:end] for name, tensor in rows.items()}, range(start, end))
    whole = summed(rows, 0.5)
    assert all(torch.allclose(tensor, whole[name], atol=1e-6) for name, tensor in clipped.release(1.0, 1.0).items())


def test_norms_of_bf16_gradients_are_those_of_the_numbers_that_enter() -> None:
    rows = gradients(5, dtype=torch.bfloat16)
    exact = torch.stack([torch.cat([rows[n][i].double().flatten() for n in rows]).norm() for i in range(5)])
    assert torch.allclose(row_norms(rows), exact, rtol=1e-12)
    assert clip_factors(torch.tensor([0.0, 0.5, 4.0, math.nan, math.inf]), 1.0).tolist() == pytest.approx(
        [1.0, 1.0, 0.25, 0.0, 0.0], rel=2e-6
    )


def test_empty_sample_is_released_as_noise_on_every_parameter() -> None:
    clipped = ClippedSum(LIKE, 2.0)
    clipped.add({name: tensor[:0] for name, tensor in gradients(1).items()}, [])
    released = clipped.release(5.0, 10.0)
    assert released.keys() == LIKE.keys()
    assert all(bool((tensor != 0).all()) and tensor.shape == LIKE[name].shape for name, tensor in released.items())


def test_parameter_that_no_subject_touched_is_noised_like_the_others() -> None:
    like = {"trained": torch.zeros(20_000), "absent": torch.zeros(20_000)}
    clipped = ClippedSum(like, 2.0)
    clipped.add({"trained": torch.zeros(1, 20_000)}, [0])
    for tensor in clipped.release(3.0, 4.0).values():
        assert float(tensor.std()) == pytest.approx(2.0 * 3.0 / 4.0, rel=0.03)


def test_sum_is_released_once() -> None:
    clipped = ClippedSum(LIKE, 1.0)
    clipped.release(1.0, 1.0)
    with pytest.raises(ValueError, match="a second release"):
        clipped.release(1.0, 1.0)
    with pytest.raises(ValueError, match="begin a new one"):
        clipped.add(gradients(1), [0])


def test_rows_that_are_not_subjects_are_refused() -> None:
    clipped = ClippedSum(LIKE, 1.0)
    with pytest.raises(ValueError, match="one row a subject"):
        clipped.add(gradients(4), [0, 1])  # two crops of each on the batch axis
    with pytest.raises(ValueError, match="comes twice"):
        clipped.add(gradients(2), [3, 3])
    clipped.add(gradients(2), [0, 1])
    with pytest.raises(ValueError, match="comes twice"):
        clipped.add(gradients(1), [1])
    with pytest.raises(ValueError, match="does not know 'unheard'"):
        clipped.add({"unheard": torch.zeros(1, 2)}, [5])


@pytest.mark.parametrize(("noise", "denominator"), [(0.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.nan)])
def test_release_without_noise_or_denominator_is_refused(noise: float, denominator: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ClippedSum(LIKE, 1.0).release(noise, denominator)
    with pytest.raises(ValueError, match="clip_norm"):
        ClippedSum(LIKE, 0.0)
