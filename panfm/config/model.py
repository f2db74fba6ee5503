"""The size of the pan-organ model."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass

from panfm.config.require import require


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """The size of the pan-organ model (sizes by name in `conf/model/`: tiny, small, base, large)."""

    width: int = 96
    """Features per token; heads * an even head size."""
    depth: int = 4
    """Transformer blocks of the shared trunk."""
    heads: int = 4
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Hidden features of a block's MLP, as a multiple of width."""
    adapter_width: int = 16
    """Hidden features of an organ's bottleneck adapter in each block."""
    predictor_width: int = 192
    """Hidden features of the predictors in the heads."""
    patch: int = 8
    """Voxels a side of a cubic patch."""
    prototypes: int = 0
    """pretrain.objective=prototypes: number of prototypes; 0 for the others, which have no such head. 2,048 to 8,192 for batches
    of up to 64 subjects."""
    decoder_depth: int = 0
    """pretrain.objective=pixels: transformer blocks of the decoder, as wide as the trunk's; 0 for the others."""

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "adapter_width", "predictor_width", "patch"):
            require(getattr(self, name) >= 1, f"model.{name} must be at least 1, got {getattr(self, name)}")
        require(
            self.width % self.heads == 0, f"model.width {self.width} must be a multiple of model.heads {self.heads}"
        )
        require(
            (self.width // self.heads) % 2 == 0 and self.width // self.heads >= 6,
            f"model.width / model.heads must be even and 6 or more for rotary positions (a pair of features for each of "
            f"three axes), got {self.width}/{self.heads}",
        )
        require(
            self.prototypes == 0 or self.prototypes >= 2,
            f"model.prototypes must be 0 (none) or at least 2, got {self.prototypes}",
        )
        require(self.decoder_depth >= 0, f"model.decoder_depth must be 0 or more, got {self.decoder_depth}")
        require(self.mlp_ratio > 0, f"model.mlp_ratio must be above 0, got {self.mlp_ratio}")
