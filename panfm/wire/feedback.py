"""Error feedback: what rounding takes from one delta is kept at the site and added to the next, so that nothing is lost for good.

Source: Karimireddy et al. 2019, arXiv:1901.09847 (there for signs of gradients, here for rounded deltas).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from panfm.config import Encoding
from panfm.wire.encoding import decode, encode


def encode_with_feedback(
    deltas: Mapping[str, Tensor], residual: Mapping[str, Tensor], encoding: Encoding
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Raw tensors of deltas and residual together, and the residual to keep for the next delta.

    Args:
        deltas: fp32, by parameter name.
        residual: what the last update that counted left behind; names without one start afresh, and names that have no
            delta now are dropped.
    Returns: (raw tensors, new residual); the residual is empty with fp32, which rounds nothing away.
    """
    meant = {name: delta + residual[name] if name in residual else delta for name, delta in sorted(deltas.items())}
    raw = encode(meant, encoding)
    if encoding is Encoding.fp32:
        return raw, {}
    sent = decode(raw)
    return raw, {name: meant[name] - sent[name] for name in meant}
