"""Typed settings of a study: what its sites agree on (`Recipe`), and what one rehearsal adds to it (`RunConfig`).

A `Recipe` is everything that travels to a site inside a signed task: values only, no path, no device, and of privacy what is
proposed; what may be spent stands in each site's policy. `RunConfig` inherits it and adds what only the machine of the
rehearsal or of the coordinator knows. Recipes are written as YAML in `panfm/conf/` and composed once, by `panfm.recipes`.

Schemas are unfrozen and avoid `Literal`: Hydra makes frozen dataclasses read-only and rejects literals.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from panfm.config.evaluation import EvaluationConfig
from panfm.config.faults import NEEDS_PROCESS, FaultConfig, FaultKind
from panfm.config.federation import FederationConfig, TrunkWeighting
from panfm.config.grids import OrganGrid, PrepareConfig, Spacing
from panfm.config.model import ModelConfig
from panfm.config.objective import Objective, PixelConfig, PrototypeConfig
from panfm.config.participation import ParticipationConfig
from panfm.config.pretrain import (
    AugmentConfig,
    LossWeights,
    MaskSchedule,
    OrganAugmentConfig,
    OrganMaskConfig,
    OrganMaskRule,
    PatchMaskConfig,
    Precision,
    PretrainConfig,
    Sampler,
)
from panfm.config.privacy import PrivacyConfig, PrivacyMode
from panfm.config.ray import RayConfig
from panfm.config.recipe import Recipe
from panfm.config.robust import GroupMean, RobustConfig
from panfm.config.run import CohortConfig, CohortKind, Engine, Missingness, RunConfig
from panfm.config.server_step import ServerOptimiser, ServerStepConfig
from panfm.config.wire import Encoding, WireConfig

__all__ = [
    "NEEDS_PROCESS",
    "AugmentConfig",
    "CohortConfig",
    "CohortKind",
    "Encoding",
    "Engine",
    "EvaluationConfig",
    "FaultConfig",
    "FaultKind",
    "FederationConfig",
    "GroupMean",
    "LossWeights",
    "MaskSchedule",
    "Missingness",
    "ModelConfig",
    "Objective",
    "OrganAugmentConfig",
    "OrganGrid",
    "OrganMaskConfig",
    "OrganMaskRule",
    "ParticipationConfig",
    "PatchMaskConfig",
    "PixelConfig",
    "Precision",
    "PrepareConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "PrivacyMode",
    "PrototypeConfig",
    "RayConfig",
    "Recipe",
    "RobustConfig",
    "RunConfig",
    "Sampler",
    "ServerOptimiser",
    "ServerStepConfig",
    "Spacing",
    "TrunkWeighting",
    "WireConfig",
]
