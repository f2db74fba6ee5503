"""What the tests of the model share: a model small enough to check by hand, and batches whose subjects differ in organs."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from panfm.config import ModelConfig, OrganGrid
from panfm.models.build import build_model, initial_parameters, load_parameters
from panfm.models.pan_organ import PanOrganModel

Scans = Sequence[dict[str, Tensor]]
"""For each subject: organ -> volume [X, Y, Z]."""
MakeModel = Callable[..., PanOrganModel]
MakeScans = Callable[[Sequence[Sequence[str]]], Scans]


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return ModelConfig(width=24, depth=3, heads=2, mlp_ratio=2.0, adapter_width=4, predictor_width=16, patch=4)


@pytest.fixture(scope="session")
def grids() -> dict[str, OrganGrid]:
    """Three organs with 8, 12 and 2 patches."""
    shapes = {"brain": [8, 8, 8], "heart": [8, 12, 8], "liver": [4, 4, 8]}
    return {organ: OrganGrid(shape=shape) for organ, shape in shapes.items()}


@pytest.fixture(scope="session")
def make_model(config: ModelConfig, grids: dict[str, OrganGrid]) -> MakeModel:
    """A model with no parameter left at 0 or 1, so that nothing can be forgotten unnoticed."""

    def make(organs: Sequence[str] = tuple(grids), seed: int = 0) -> PanOrganModel:
        own = {organ: grids[organ] for organ in organs}
        model = build_model(config, own)
        noise = torch.Generator().manual_seed(seed)
        start = initial_parameters(config, own, seed)
        load_parameters(model, {n: p + 0.1 * torch.randn(p.shape, generator=noise) for n, p in start.items()})
        return model

    return make


@pytest.fixture(scope="session")
def make_scans(grids: dict[str, OrganGrid]) -> MakeScans:
    """Random volumes; those of subject number i do not depend on the other subjects."""

    def make(presence: Sequence[Sequence[str]]) -> Scans:
        return [
            {
                organ: torch.from_numpy(
                    np.random.default_rng([row, list(grids).index(organ)])
                    .standard_normal(grids[organ].shape)
                    .astype(np.float32)
                )
                for organ in organs
            }
            for row, organs in enumerate(presence)
        ]

    return make
