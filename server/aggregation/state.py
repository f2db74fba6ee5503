"""What the coordinator's averaging remembers from round to round, and a checkpoint must therefore keep.

It is a value: a round takes one and returns the next. A group that stays as it was keeps its part of it, bit for bit.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """Everything besides student and teacher that the next round depends on; the default is the start of a run."""

    moments: dict[str, Tensor] = field(default_factory=dict)
    """`first/<parameter>` and `second/<parameter>` of the server's optimiser, fp32 on the CPU, in the shape of the parameter;
    none for a parameter that no round has moved yet, and none at all with FedAvg."""
    past_norms: dict[str, list[float]] = field(default_factory=dict)
    """group -> the norm that stands for each of its past rounds, oldest first, at most `federation.robust.past_rounds` of them;
    kept only while norms are bounded by the past."""
