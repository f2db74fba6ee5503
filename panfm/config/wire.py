"""How parameters travel between the coordinator and a site."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from panfm.config.require import require


class Encoding(Enum):
    """Number format of tensors on their way."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


@dataclass(slots=True, kw_only=True)
class WireConfig:
    """What tensors look like on their way; the coordinator's master stays fp32."""

    down: Encoding = Encoding.fp32
    """Student and teacher to a site: fp32 or bf16. Deltas are taken against the tensors as received."""
    up: Encoding = Encoding.fp32
    """Deltas to the coordinator. What bf16 and int8 round away is kept at the site and added to its next delta."""

    zstd_level: int = 1
    """Lossless compression of what travels, 1 to 19; 0: none. Above 1 it takes longer and gains little (benchmarks/wire.md)."""
    parcel_mb: float = 64.0
    """Most megabytes of tensors in one message; larger models travel in several."""

    def __post_init__(self) -> None:
        require(self.down is not Encoding.int8, "federation.wire.down can be fp32 or bf16, got int8")
        require(0 <= self.zstd_level <= 19, f"federation.wire.zstd_level must be in 0 to 19, got {self.zstd_level}")
        require(0.01 <= self.parcel_mb <= 64, f"federation.wire.parcel_mb must be in 0.01 to 64, got {self.parcel_mb}")

    @property
    def parcel_bytes(self) -> int:
        """Most bytes of a parcel."""
        return int(self.parcel_mb * 1e6)
