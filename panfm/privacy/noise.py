"""Gaussian noise that nobody can predict, repeat or subtract.

Each call draws fresh keys from the operating system, expands them by AES-256 in counter mode, and forgets them: there is no
seed, no state that a fork could copy or a checkpoint keep, and nothing of a recipe reaches the draws. With torch's generator
under a public seed, noise of fifty clip norms was subtracted exactly (its CPU generator keeps 32 bits of a seed, too).

Floating-point numbers leak through their last digits: of the sums that a textbook sampler can produce, few fit each candidate
(Mironov 2012). Two measures, either of which is said to suffice: each number is the sum of four independent draws by four
keys, halved (Holohan and Braghin 2021, arXiv:2107.10138; what Opacus does in its secure mode), and noise is made and added in
double precision and only then rounded to the sum's own, so that about 2**29 results fall onto each number that is let out.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

KEY_BYTES = 32
NUM_KEYS = 4
_CHUNK = 2**16
"""Numbers made at a time, an even number: the working arrays (2 MB) stay in the processor's cache."""


def gaussian(count: int, keys: Sequence[bytes]) -> Tensor:
    """Standard normal numbers in double precision, a function of the keys: half the sum of one stream for each of four."""
    if len(keys) != NUM_KEYS or any(len(key) != KEY_BYTES for key in keys):
        raise ValueError(f"there should be {NUM_KEYS} keys of {KEY_BYTES} bytes")
    streams = [_Stream(key) for key in keys]
    numbers = torch.zeros(count, dtype=torch.float64)
    for start in range(0, count, _CHUNK):
        part = numbers[start : start + _CHUNK]
        for stream in streams:
            part += stream.normals(len(part) + len(part) % 2)[: len(part)]
    return numbers.mul_(0.5)


def fresh_gaussian(count: int) -> Tensor:
    """Standard normal numbers by keys of the operating system, which nobody has had before or will have again."""
    return gaussian(count, [os.urandom(KEY_BYTES) for _ in range(NUM_KEYS)])


def noised(summed: Tensor, std: float) -> Tensor:
    """A copy of a tensor with fresh noise of this standard deviation on every coordinate; see `all_noised`."""
    return all_noised({"": summed}, std)[""]


def all_noised(summed: Mapping[str, Tensor], std: float) -> dict[str, Tensor]:
    """Each tensor with noise of its own on every coordinate, those that are zero because no subject had the organ among them.

    Drawn for all at once, 8 bytes a coordinate: for hundreds of small tensors one by one it takes three times as long.

    Args:
        summed: any floating dtypes and devices; must be finite.
        std: above 0. Added in double precision, and rounded once to the tensor's own dtype.
    Raises: ValueError when there is nothing that noise could hide.
    """
    if not 0 < std < math.inf:
        raise ValueError(f"noise needs a standard deviation above 0 and finite, got {std}")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in summed.values()):
        raise ValueError("a sum that is not finite cannot be noised; clip every subject's gradient first")
    sizes = [tensor.numel() for tensor in summed.values()]
    parts = torch.split(fresh_gaussian(sum(sizes)).mul_(std), sizes)
    return {name: _added(tensor, part) for (name, tensor), part in zip(summed.items(), parts, strict=True)}


def _added(summed: Tensor, noise: Tensor) -> Tensor:
    return (summed.detach().double() + noise.reshape(summed.shape).to(summed.device)).to(summed.dtype)


class _Stream:
    """Standard normal numbers from one key, by Box and Muller, from uniform numbers of 53 bits."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(b"\0" * 16)).encryptor()

    def normals(self, count: int) -> Tensor:
        """The next numbers of the stream; an even number of them."""
        words = np.frombuffer(self._cipher.update(bytes(8 * count)), dtype="<u8") >> np.uint64(11)
        uniform = torch.from_numpy(
            words.view(np.int64)
        ).double()  # torch's logarithm and sine are three times numpy's speed
        radius = uniform[: count // 2].add_(1.0).mul_(2.0**-53).log_().mul_(-2.0).sqrt_()  # of (0, 1]: never log 0
        angle = uniform[count // 2 :].mul_(2.0 * math.pi * 2.0**-53)
        return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])
