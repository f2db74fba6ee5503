"""fp32 tensors in fewer bits: as they are, as bf16, or as int8 with one fp32 scale for every 256 numbers.

Raw tensors are named like what they hold, and say by their type how they are to be read. The scales of an int8 tensor lie
beside it under its name and `#scales`, which no module path can hold. A raw tensor comes from a peer: what cannot be read is
a `ProtocolError`, and a number that was not finite is not finite afterwards.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from panfm.config import Encoding
from panfm.errors import ProtocolError

BLOCK = 256
"""Numbers that share a scale: 1.6 % more bytes, and an outlier coarsens 255 neighbours, not a whole matrix."""
SCALES = "#scales"
"""What the name of an int8 tensor's scales ends with."""
_LARGEST = 127


def encode(tensors: Mapping[str, Tensor], encoding: Encoding) -> dict[str, Tensor]:
    """Raw tensors on the CPU, contiguous, in sorted order of names.

    Args:
        tensors: fp32, any shape.
    Raises: ValueError for another type of number.
    """
    raw: dict[str, Tensor] = {}
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype is not torch.float32 or SCALES in name:
            raise ValueError(f"cannot encode {name} ({tensor.dtype}): parameters are fp32")
        values = tensor.detach().cpu().contiguous()
        if encoding is Encoding.int8:
            raw[name], raw[name + SCALES] = _quantised(values)
        else:
            raw[name] = values.bfloat16() if encoding is Encoding.bf16 else values
    return raw


def decode(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 tensors by name.

    Raises: ProtocolError when a tensor is of an unknown type, or scales are missing, too many or of another number.
    """
    if stray := [name for name in raw if name.endswith(SCALES) and name.removesuffix(SCALES) not in raw]:
        raise ProtocolError(f"the scales {stray[0]!r:.80} belong to no tensor; the peer runs other code")
    names = sorted(name for name in raw if not name.endswith(SCALES))
    return {name: decode_block(name, raw[name], raw.get(name + SCALES)) for name in names}


def decode_block(name: str, values: Tensor, scales: Tensor | None) -> Tensor:
    """One raw tensor, or a part of one that begins at a multiple of `BLOCK` numbers, as fp32 of the same shape.

    Args:
        values: fp32, bf16 or int8.
        scales: those of these numbers, with int8 only.
    Raises: ProtocolError when they do not fit together.
    """
    if (values.dtype is torch.int8) != (scales is not None):
        raise ProtocolError(f"{name!r:.80} should have scales exactly when it is int8; the peer runs other code")
    if scales is not None:
        return _dequantised(name, values, scales)
    if values.dtype not in (torch.float32, torch.bfloat16):
        raise ProtocolError(f"{name!r:.80} should be fp32, bf16 or int8, got {values.dtype}; the peer runs other code")
    return values.float()


def as_received(tensors: Mapping[str, Tensor], encoding: Encoding) -> dict[str, Tensor]:
    """What the peer will have decoded; the very same tensors with fp32."""
    # One at a time: raw tensors are half a model more.
    return {name: decode(encode({name: tensor}, encoding))[name] for name, tensor in sorted(tensors.items())}


def num_scales(num_values: int) -> int:
    """Scales of so many numbers."""
    return -(-num_values // BLOCK)


def _quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest multiples of a scale, the largest number of a block being 127 scales.

    A block with a number that is not finite gets a scale that is not, and is decoded as such.
    """
    blocks = _in_blocks(values.reshape(-1))
    scales = blocks.abs().amax(dim=1) / _LARGEST
    steps = (blocks / scales.where(scales > 0, 1.0).unsqueeze(1)).round_().clamp_(-_LARGEST, _LARGEST)
    flat = steps.nan_to_num_().to(torch.int8).reshape(-1)[: values.numel()]
    return flat.clone().reshape(values.shape), scales


def _dequantised(name: str, values: Tensor, scales: Tensor) -> Tensor:
    if scales.dtype is not torch.float32 or scales.shape != (num_scales(values.numel()),):
        raise ProtocolError(f"{name!r:.80} has scales of another number or type; the peer runs other code")
    blocks = _in_blocks(values.reshape(-1).float())
    return (blocks * scales.unsqueeze(1)).reshape(-1)[: values.numel()].reshape(values.shape)


def _in_blocks(flat: Tensor) -> Tensor:
    """Rows of `BLOCK` numbers, the last one filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
