"""How scans become what the model sees: the grid of each organ, and how a site prepares for it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from panfm.config.require import require


class Spacing(Enum):
    """What becomes of a scan's own voxel spacing when an organ is prepared."""

    resample = "resample"
    native = "native"


@dataclass(slots=True, kw_only=True)
class OrganGrid:
    """The grid on which an organ's scans are prepared: RAS+, centred on the organ."""

    shape: list[int] = field(default_factory=lambda: [32, 32, 32])
    """Voxels a side that the model sees, XYZ; each a multiple of the model's patch. native: a scan gives that many along
    its finest axes, and 1/2, 1/4 .. of them along an axis on which its voxels are thick."""
    spacing_mm: list[float] = field(default_factory=lambda: [4.0, 4.0, 4.0])
    """Voxel spacing, XYZ, millimetres. native: not used, each scan keeps its own."""
    spacing: Spacing = Spacing.resample
    """resample: onto the upright grid of spacing_mm. native: voxels as the scanner made them, axes in the order closest to
    RAS+; the patch embedding adapts to thick slices."""
    max_degree: int = 3
    """native: voxels 2**d times as long as the finest are thick of degree d, at most this; 2**max_degree divides the patch."""

    def __post_init__(self) -> None:
        require(
            len(self.shape) == 3 and min(self.shape) >= 1,
            f"organs.*.shape needs three positive voxel counts, got {self.shape}",
        )
        require(
            len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0,
            f"organs.*.spacing_mm needs three positive millimetres, got {self.spacing_mm}",
        )
        require(0 <= self.max_degree <= 5, f"organs.*.max_degree must be in 0 to 5, got {self.max_degree}")


@dataclass(slots=True, kw_only=True)
class PrepareConfig:
    """How a site turns its scans into the prepared store."""

    margin_voxels: int = 2
    """Extra voxels stored on each side of the grid; training crops the grid from it, shifted by at most this much."""
    clip_percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])
    """Foreground intensities below and above are clipped before normalisation (percent)."""

    def __post_init__(self) -> None:
        require(self.margin_voxels >= 0, f"prepare.margin_voxels must be 0 or more, got {self.margin_voxels}")
        wanted = f"prepare.clip_percentiles needs two percents that rise within 0 to 100, got {self.clip_percentiles}"
        require(len(self.clip_percentiles) == 2, wanted)
        low, high = self.clip_percentiles
        require(0 <= low < high <= 100, wanted)
