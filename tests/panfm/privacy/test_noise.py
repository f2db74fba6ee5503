"""The noise is Gaussian, of the promised size, of nobody's seed, and different each time; also after a fork."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import os
import random

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from panfm.privacy import noise as noise_module
from panfm.privacy.noise import KEY_BYTES, all_noised, fresh_gaussian, gaussian, noised

KEYS = [bytes([number]) * KEY_BYTES for number in range(4)]
NUMBERS = gaussian(400_000, KEYS).numpy()
"""A function of fixed keys, so that the statistical tests below pass or fail for good."""


def test_numbers_are_half_the_sum_of_four_streams_of_box_and_muller() -> None:
    """The oracle: AES-256-CTR block by block (ECB of the counters), one number at a time, in Python's own arithmetic."""

    def word(key: bytes, place: int) -> int:
        block = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update((place // 2).to_bytes(16, "big"))
        return int.from_bytes(block[8 * (place % 2) :][:8], "little") >> 11

    half = noise_module._CHUNK // 2
    for place in (0, 1, 7, 1000, half - 1):
        slow = 0.0
        for key in KEYS:
            radius = math.sqrt(-2 * math.log((word(key, place) + 1) / 2**53))
            slow += radius * math.cos(2 * math.pi * word(key, place + half) / 2**53)
        assert NUMBERS[place] == pytest.approx(slow / 2, abs=1e-12)


def test_cipher_is_the_published_one() -> None:
    """NIST SP 800-38A, F.5.5 (CTR-AES256), first block, with its counter block."""
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex("6bc1bee22e409f96e93d7e117393172a")
    made = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(plain)
    assert made.hex() == "601ec313775789a5b7a7f504bbf3d228"


def test_distribution_is_standard_normal() -> None:
    assert stats.kstest(NUMBERS, "norm").pvalue > 0.01
    n = len(NUMBERS)
    assert abs(NUMBERS.mean()) < 4 / math.sqrt(n)
    assert abs(NUMBERS.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(stats.skew(NUMBERS).item()) < 4 * math.sqrt(6 / n)
    assert abs(stats.kurtosis(NUMBERS).item()) < 4 * math.sqrt(24 / n)


def test_tails_are_as_heavy_as_they_should_be() -> None:
    for threshold in (3.0, 4.0):
        expected = len(NUMBERS) * 2 * stats.norm.sf(threshold)
        assert abs((np.abs(NUMBERS) > threshold).sum() - expected) < 4 * math.sqrt(expected) + 1


def test_numbers_do_not_depend_on_their_neighbours() -> None:
    n = len(NUMBERS)
    for lag in (1, 2, noise_module._CHUNK // 2, noise_module._CHUNK):
        for power in (1, 2):  # the two numbers of a pair share a radius: their squares would tell
            found = np.corrcoef(NUMBERS[:-lag] ** power, NUMBERS[lag:] ** power)[0, 1]
            assert abs(found) < 4.5 / math.sqrt(n - lag)


def test_no_number_comes_twice() -> None:
    assert len(np.unique(NUMBERS)) == len(NUMBERS)
    for changed in range(4):
        keys = [*KEYS]
        keys[changed] = b"\xff" * KEY_BYTES
        first = gaussian(noise_module._CHUNK, keys).numpy()
        assert not np.any(first == NUMBERS[: noise_module._CHUNK]), "every key counts"


@pytest.mark.parametrize("count", [0, 1, 2, 7, noise_module._CHUNK - 1, noise_module._CHUNK + 5])
def test_as_many_numbers_as_asked_for(count: int) -> None:
    numbers = gaussian(count, KEYS)
    assert numbers.shape == (count,)
    assert len(np.unique(numbers.numpy())) == count
    if count >= noise_module._CHUNK:
        assert np.array_equal(numbers.numpy()[: noise_module._CHUNK], NUMBERS[: noise_module._CHUNK])


def test_no_seed_reaches_the_noise() -> None:
    def seeded() -> torch.Tensor:  # what the library must not do is done here to show that it would not matter
        torch.manual_seed(7)  # noqa: TID251
        np.random.seed(7)  # noqa: NPY002
        random.seed(7)  # noqa: TID251
        return noised(torch.zeros(100), 50.0)

    one, other = seeded(), seeded()
    assert not torch.any(one == other)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


def test_forked_process_has_noise_of_its_own() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, fresh_gaussian(8).numpy().tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(read, 64))
    os.close(read)
    os.close(write)
    assert theirs.shape == (8,)
    assert not np.any(theirs == fresh_gaussian(8).numpy())


def test_keys_come_from_the_operating_system_for_each_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes([len(asked)]) * size

    monkeypatch.setattr(os, "urandom", urandom)
    one, other = noised(torch.zeros(3), 1.0), noised(torch.zeros(3), 1.0)
    assert asked == [32] * 8
    assert not torch.any(one == other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_coordinate_is_noised_by_the_promised_amount(dtype: torch.dtype) -> None:
    summed = torch.linspace(-3, 3, 40_000).to(dtype).reshape(200, 200)
    released = noised(summed, 4.0)
    assert (released.dtype, released.shape) == (dtype, summed.shape)
    added = (released.double() - summed.double()).flatten().numpy()
    assert (
        stats.kstest(added / 4.0, "norm").statistic < 0.015
    )  # 0.1 % of fair samples pass 0.0098; bf16 adds its rounding
    assert added.std() == pytest.approx(4.0, rel=0.02)


def test_result_is_the_double_sum_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\1" * size)
    summed = torch.rand(1000) * 100
    exact = summed.double() + gaussian(1000, [b"\1" * KEY_BYTES] * 4) * 0.3
    assert torch.equal(noised(summed, 0.3), exact.float())


def test_all_tensors_are_noised_independently_also_those_that_are_zero() -> None:
    released = all_noised({"a": torch.zeros(50), "b": torch.zeros(50)}, 1.0)
    assert bool((released["a"] != 0).all())
    assert bool((released["b"] != 0).all())
    assert not torch.any(released["a"] == released["b"])


@pytest.mark.parametrize("std", [0.0, -1.0, math.inf, math.nan])
def test_no_noise_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="standard deviation"):
        noised(torch.zeros(2), std)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_sum_that_noise_cannot_hide_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        noised(torch.tensor([0.0, value]), 1.0)


def test_missing_or_short_keys_are_refused() -> None:
    for keys in (KEYS[:3], [*KEYS[:3], b"short"]):
        with pytest.raises(ValueError, match="4 keys of 32 bytes"):
            gaussian(4, keys)
