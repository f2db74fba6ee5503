"""Where matrices are multiplied in half precision, and where never.

A step runs within `computing_in` the recipe's precision: there torch rounds the inputs of matrix products and of attention to
bf16 and leaves the rest of the arithmetic in fp32, the residual stream included. What decides by small differences (the subject
token's attention, prototypes' logits before a low temperature) is computed within `full_precision`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import torch
from torch import Tensor

from panfm.config import Precision
from panfm.errors import RunError


def computing_in(precision: Precision, device: str) -> torch.autocast:
    """The context of one forward pass; fp32 changes nothing.

    Raises: RunError when the device has no bf16.
    """
    kind = torch.device(device).type
    if precision is Precision.bf16 and kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RunError(
            f"pretrain.precision=bf16 needs a GPU that has bf16, and {torch.cuda.get_device_name()} has not; train on a newer "
            "one, or let the coordinator set it to fp32"
        )
    return torch.autocast(kind, torch.bfloat16, enabled=precision is Precision.bf16)


def full_precision(like: Tensor) -> torch.autocast:
    """The context of arithmetic that is never rounded to bf16, on the device of a tensor; its inputs are to be fp32."""
    return torch.autocast(like.device.type, enabled=False)
