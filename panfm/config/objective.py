"""What pre-training predicts, and what each choice needs of the model and of the averaging.

Three objectives, one at a time: the teacher's features, the teacher's assignments to prototypes, or the voxels themselves. All
of them take the same masks, so each goes with every rule of organ masking.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from panfm.config.model import ModelConfig
from panfm.config.require import require
from panfm.config.server_step import ServerOptimiser, ServerStepConfig


class Objective(Enum):
    """What the student learns to predict."""

    features = "features"
    """The teacher's normalised features; weights in `pretrain.loss`."""
    prototypes = "prototypes"
    """The teacher's assignments to prototypes (DINO + iBOT); settings in `pretrain.prototypes`, size `model.prototypes`."""
    pixels = "pixels"
    """The voxels of hidden patches (MAE); settings in `pretrain.pixels`, size `model.decoder_depth`."""


@dataclass(slots=True, kw_only=True)
class PrototypeConfig:
    """objective: prototypes. Weights of its terms, and what keeps assignments from becoming all the same."""

    subject: float = 1.0
    """Weight: the student's subject token of what it sees, against the teacher's of all organs (DINO)."""
    patch: float = 1.0
    """Weight: hidden patches inside visible organs (iBOT)."""
    organ: float = 0.0
    """Weight of term (b) of the feature objective beside it: features of masked organs' tokens from the subject token."""
    koleo: float = 0.0
    """Weight: spreads subject tokens of a batch over the sphere (KoLeo); DINOv2 has 0.1. It couples subjects."""
    student_temperature: float = 0.1
    """Of the student's softmax; logits are cosines."""
    teacher_temperature: float = 0.04
    """Of the teacher's softmax at the first step; lower is sharper, which works against assignments that are all alike."""
    final_teacher_temperature: float = 0.07
    """Of the teacher's softmax after the warm-up. With batches below 64 subjects 0.04 all along is the safer choice."""
    temperature_warmup: float = 0.3
    """Share of the run over which the teacher's temperature goes from the one to the other, in a line."""
    centre_momentum: float = 0.9
    """How much of the centre of the teacher's logits stays in each step; 1 leaves it at 0 for good: no centring."""

    def __post_init__(self) -> None:
        for name in ("subject", "patch", "organ", "koleo"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"pretrain.prototypes.{name} must be 0 or more and finite, got {value}")
        require(self.subject + self.patch > 0, "pretrain.prototypes: subject or patch needs a weight above 0")
        for name in ("student_temperature", "teacher_temperature", "final_teacher_temperature"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"pretrain.prototypes.{name} must be above 0 and finite, got {value}")
        for name in ("temperature_warmup", "centre_momentum"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"pretrain.prototypes.{name} must be in 0 to 1, got {value}")


@dataclass(slots=True, kw_only=True)
class PixelConfig:
    """objective: pixels. The loss of hidden patches has weight 1."""

    organ: float = 0.0
    """Weight of term (b) of the feature objective beside it: features of masked organs' tokens from the subject token."""

    def __post_init__(self) -> None:
        require(0 <= self.organ < math.inf, f"pretrain.pixels.organ must be 0 or more and finite, got {self.organ}")


def check_heads(objective: Objective, model: ModelConfig) -> None:
    """That a model has the heads that its objective trains, and none that nobody would train.

    Raises: ConfigError, else.
    """
    owners = {"prototypes": Objective.prototypes, "decoder_depth": Objective.pixels}
    for name, owner in owners.items():
        size, example = getattr(model, name), {"prototypes": 2048, "decoder_depth": 2}[name]
        require(
            objective is not owner or size > 0,
            f"pretrain.objective={objective.value} needs model.{name} above 0, got {size}; set it, to {example} for example",
        )
        require(
            objective is owner or size == 0,
            f"model.{name}={size} makes a head that only pretrain.objective={owner.value} trains, and the objective is "
            f"{objective.value}; set model.{name} to 0, or choose that objective",
        )


def check_centre(objective: Objective, server: ServerStepConfig) -> None:
    """That the coordinator's step leaves a centre between the old one and the mean of the sites'.

    The centre of the teacher's logits travels as a parameter, and is a mean and no direction to go in: momentum would carry
    it past every site's, an adaptive rate would give it the same step whatever its size, and per-step deltas would
    stretch those of sites with few steps.
    Raises: ConfigError, else.
    """
    if objective is not Objective.prototypes:
        return
    require(
        server.optimiser is ServerOptimiser.fedavg and server.rate <= 1 and not server.normalise_steps,
        "pretrain.objective=prototypes carries the centre of the teacher's logits with the parameters, and only their plain "
        "mean is a centre: set federation.server.optimiser=fedavg, rate to 1 (or less) and normalise_steps=false; got "
        f"{server.optimiser.value}, {server.rate} and {str(server.normalise_steps).lower()}",
    )


def check_private_objective(objective: Objective) -> None:
    """That no subject's target comes from others, and that the dense layout knows the loss.

    Raises: ConfigError, else.
    """
    require(
        objective is not Objective.prototypes,
        "pretrain.objective=prototypes cannot be had with privacy: its centre, and so each subject's target, is made of "
        "the other subjects; set it to features",
    )
    require(
        objective is not Objective.pixels,
        "pretrain.objective=pixels has no private step yet, which works in the dense layout; set it to features",
    )
