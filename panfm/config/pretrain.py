"""One site's training in one round: masks, losses, augmentation, optimiser."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum

from panfm.config.objective import Objective, PixelConfig, PrototypeConfig
from panfm.config.require import require


class OrganMaskRule(Enum):
    """How Saliency-Guided Masking chooses the organs that the student does not see."""

    lift = "lift"
    threshold = "threshold"
    uniform = "uniform"
    none = "none"


class MaskSchedule(Enum):
    """How organ masking goes from where it starts to where it ends, over the steps of the run."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Sampler(Enum):
    """Which subjects of a site a training step sees."""

    subjects = "subjects"
    balanced = "balanced"


class Precision(Enum):
    """In which numbers a training step multiplies matrices."""

    fp32 = "fp32"
    bf16 = "bf16"
    """Matrix products and attention. Parameters, residual stream, norms, saliency, targets, losses, gradients of parameters,
    optimiser and teacher's average stay in fp32."""


@dataclass(slots=True, kw_only=True)
class OrganMaskConfig:
    """Saliency-Guided Masking (DESIGN section 4): which organs the student does not see."""

    rule: OrganMaskRule = OrganMaskRule.lift
    """lift (default), threshold (the skill card's), uniform (organ dropout at the same rate), none."""
    rate: float = 0.3
    """Chance of each present organ to be masked, before the cap at all but one (lift and uniform)."""
    temperature: float = 0.5
    """Softmax temperature on log lift: low masks the dominant organ almost surely, high is uniform."""
    explore: float = 0.25
    """Share of uniform choice mixed into the lift rule, so that rare organs are masked too (0 to 1)."""
    threshold: float = 1.5
    """threshold rule: an organ is dominant when its share passes this many times 1 / organs present."""
    threshold_absolute: bool = False
    """threshold rule: read `threshold` as a share itself (the skill card's literal 0.7) and not as a multiple."""
    threshold_probability: float = 0.5
    """threshold rule: chance that a dominant organ is masked."""
    saliency_blocks: int = 2
    """Last blocks of the teacher over whose heads the subject token's attention is averaged."""
    schedule: MaskSchedule = MaskSchedule.constant
    """constant: `rate` and `temperature` all along. linear, cosine: from the starts below, at the first step, to those."""
    start_rate: float | None = None
    """linear, cosine: `rate` at the first step; null: it stays what it is."""
    start_temperature: float | None = None
    """linear, cosine: `temperature` at the first step; null: it stays what it is."""

    def __post_init__(self) -> None:
        self._check_schedule()
        for name in ("rate", "explore", "threshold_probability"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"pretrain.organ_mask.{name} must be in 0 to 1, got {value}")
        require(self.temperature > 0, f"pretrain.organ_mask.temperature must be above 0, got {self.temperature}")
        require(self.threshold > 0, f"pretrain.organ_mask.threshold must be above 0, got {self.threshold}")
        require(
            self.saliency_blocks >= 1,
            f"pretrain.organ_mask.saliency_blocks must be at least 1, got {self.saliency_blocks}",
        )

    def _check_schedule(self) -> None:
        rate, temperature = self.start_rate, self.start_temperature
        require(rate is None or 0 <= rate <= 1, f"pretrain.organ_mask.start_rate must be in 0 to 1, got {rate}")
        require(
            temperature is None or temperature > 0,
            f"pretrain.organ_mask.start_temperature must be above 0, got {temperature}",
        )
        moves = rate is not None or temperature is not None
        require(
            moves == (self.schedule is not MaskSchedule.constant),
            f"pretrain.organ_mask.schedule={self.schedule.value} "
            + ("has no start; choose linear or cosine" if moves else "needs start_rate or start_temperature")
            + ", or leave all three out",
        )
        drawn = (OrganMaskRule.lift, OrganMaskRule.uniform)
        for name, start, rules in (("rate", rate, drawn), ("temperature", temperature, drawn[:1])):
            require(
                start is None or self.rule in rules,
                f"pretrain.organ_mask.rule={self.rule.value} knows of no {name}, so start_{name} would do nothing; leave it "
                f"out, or choose {' or '.join(rule.value for rule in rules)}",
            )


def check_constant(config: OrganMaskConfig) -> None:
    """That organ masking is the same at every step, as it is with privacy.

    Raises: ConfigError, else.
    """
    require(
        config.schedule is MaskSchedule.constant,
        f"pretrain.organ_mask.schedule={config.schedule.value} cannot be had with privacy, whose step knows of no schedule; "
        "set it to constant and leave out start_rate and start_temperature",
    )


@dataclass(slots=True, kw_only=True)
class PatchMaskConfig:
    """Which patches of a visible organ the student must predict."""

    rate: float = 0.6
    """Share of an organ's patches that are masked."""
    block: int = 1
    """Patches a side of the cubes in which they are masked; 1 masks single patches at random."""

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, f"pretrain.patch_mask.rate must be above 0 and below 1, got {self.rate}")
        require(self.block >= 1, f"pretrain.patch_mask.block must be at least 1, got {self.block}")


@dataclass(slots=True, kw_only=True)
class LossWeights:
    """objective: features. Weights of its terms; `pretrain.prototypes` and `pretrain.pixels` hold those of the others."""

    patch: float = 1.0
    """(a) the teacher's features of masked patches inside visible organs."""
    seen: float = 0.5
    """(a) the same for the patches that the student did see, augmented, where the teacher saw them as they are."""
    organ: float = 0.5
    """(b) the teacher's organ token of a masked organ, from the student's subject token."""

    def __post_init__(self) -> None:
        for name in ("patch", "seen", "organ"):
            require(getattr(self, name) >= 0, f"pretrain.loss.{name} must be 0 or more, got {getattr(self, name)}")
        require(self.patch + self.seen + self.organ > 0, "pretrain.loss: at least one term needs a weight above 0")


@dataclass(slots=True, kw_only=True)
class OrganAugmentConfig:
    """What is different for one organ; null takes `pretrain.augment`'s own value, which says what each means."""

    scale: float | None = None
    offset: float | None = None
    noise: float | None = None
    rotation_deg: float | None = None
    zoom: float | None = None
    translation_mm: float | None = None
    flip: list[float] | None = None
    blur_mm: float | None = None
    bias: float | None = None
    gamma: float | None = None


@dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """How crops are changed before they are learned from; 0 leaves them as they are.

    Where a voxel lies changes for teacher and student alike; intensities change for the student only, while the teacher sees
    the crop as it is. Values are symmetric around the identity.
    """

    shift_voxels: int = 2
    """Both: largest shift of the crop per axis; at most prepare.margin_voxels."""
    rotation_deg: float = 0.0
    """Both: largest rotation about each axis, degrees."""
    zoom: float = 0.0
    """Both: enlarged by 1 +- this."""
    translation_mm: float = 0.0
    """Both: largest movement along each axis, millimetres; beside shift_voxels it reaches between voxels and past the margin."""
    flip: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    """Both: chance of a mirror image along X (left-right), Y (front-back), Z (head-feet). X only for organs without a side."""
    scale: float = 0.2
    """Student: intensities are multiplied by 1 +- this."""
    offset: float = 0.2
    """Student: this much is added to or taken from normalised intensities, in standard deviations."""
    noise: float = 0.2
    """Student: standard deviation of the voxel noise, in standard deviations of the volume."""
    blur_mm: float = 0.0
    """Student: largest standard deviation of a Gaussian blur, millimetres."""
    bias: float = 0.0
    """Student: largest coefficient of each of the nine waves of a bias field, in natural logarithms of the factor."""
    gamma: float = 0.0
    """Student: contrast is raised to the power exp(+- this)."""
    organs: dict[str, OrganAugmentConfig] = field(default_factory=dict)
    """What is different for single organs; on a command line '+pretrain.augment.organs={brain: {blur_mm: 2}}', with the plus."""

    def __post_init__(self) -> None:
        spatial = ("shift_voxels", "rotation_deg", "zoom", "translation_mm")
        for name in (*spatial, "scale", "offset", "noise", "blur_mm", "bias", "gamma"):
            require(getattr(self, name) >= 0, f"pretrain.augment.{name} must be 0 or more, got {getattr(self, name)}")
        require(self.zoom < 1, f"pretrain.augment.zoom must be below 1, got {self.zoom}")
        require(
            len(self.flip) == 3 and all(0 <= chance <= 1 for chance in self.flip),
            f"pretrain.augment.flip needs three chances in 0 to 1, for X, Y and Z, got {self.flip}",
        )

    def of(self, organ: str) -> AugmentConfig:
        """The settings of one organ.

        Raises: ConfigError when its own values cannot be.
        """
        own = self.organs.get(organ)
        if own is None:
            return replace(self, organs={})
        values = {f.name: getattr(own, f.name) for f in fields(own)}
        return replace(self, organs={}, **{name: value for name, value in values.items() if value is not None})


@dataclass(slots=True, kw_only=True)
class PretrainConfig:
    """One site's training in one round."""

    steps_per_round: int = 20
    """Optimiser steps of each site in each round."""
    batch_size: int = 16
    """Subjects a step; a smaller site uses all it has."""
    accumulate: int = 1
    """Parts in which a step's batch is computed, one after the other: less memory, the same gradient up to rounding."""
    precision: Precision = Precision.fp32
    """fp32, or bf16: training's matrix products in half precision, for processors that have units for it."""
    checkpointing: bool = False
    """Whether activations within the student's blocks are computed again in the backward pass instead of kept: less memory, more
    time, the same bits."""
    sampler: Sampler = Sampler.subjects
    """subjects: pass after pass over everybody. balanced: those with rare organs more often (panfm.data.sampler)."""
    learning_rate: float = 5e-4
    """AdamW's rate at the end of the warm-up."""
    final_learning_rate: float = 1e-5
    """AdamW's rate at the end of the last round (cosine)."""
    warmup_steps: int = 20
    """Steps of linear warm-up, counted over the rounds."""
    weight_decay: float = 0.05
    """AdamW's decoupled decay on matrices; vectors and tokens are not decayed."""
    clip_norm: float = 1.0
    """Largest norm of a step's gradient."""
    proximal: float = 0.0
    """FedProx: mu of the term mu / 2 * |student - student of the task|^2, which holds sites together; 0: none."""
    teacher_momentum: float = 0.99
    """EMA of the teacher at the first step; rises to 1 by a cosine over the whole run."""
    keep_moments: bool = False
    """Whether a site's AdamW goes on from its moments of the round in which its update last counted, or starts afresh."""
    objective: Objective = Objective.features
    """What the student predicts: features, prototypes or pixels."""
    loss: LossWeights = field(default_factory=LossWeights)
    prototypes: PrototypeConfig = field(default_factory=PrototypeConfig)
    pixels: PixelConfig = field(default_factory=PixelConfig)
    organ_mask: OrganMaskConfig = field(default_factory=OrganMaskConfig)
    patch_mask: PatchMaskConfig = field(default_factory=PatchMaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("steps_per_round", "batch_size", "accumulate"):
            require(getattr(self, name) >= 1, f"pretrain.{name} must be at least 1, got {getattr(self, name)}")
        require(self.learning_rate > 0, f"pretrain.learning_rate must be above 0, got {self.learning_rate}")
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            f"pretrain.final_learning_rate must be in 0 to learning_rate, got {self.final_learning_rate}",
        )
        require(self.warmup_steps >= 0, f"pretrain.warmup_steps must be 0 or more, got {self.warmup_steps}")
        require(self.weight_decay >= 0, f"pretrain.weight_decay must be 0 or more, got {self.weight_decay}")
        require(self.clip_norm > 0, f"pretrain.clip_norm must be above 0, got {self.clip_norm}")
        require(
            0 <= self.proximal < float("inf"), f"pretrain.proximal must be 0 or more and finite, got {self.proximal}"
        )
        require(
            0 <= self.teacher_momentum < 1,
            f"pretrain.teacher_momentum must be in 0 to 1 (1 excluded), got {self.teacher_momentum}",
        )
        require(
            self.prototypes.koleo == 0 or self.batch_size >= 2,
            f"pretrain.prototypes.koleo spreads subjects from each other and needs pretrain.batch_size of 2 or more, got "
            f"{self.batch_size}",
        )
        require(
            self.prototypes.koleo == 0 or self.accumulate == 1,
            "pretrain.prototypes.koleo looks for each subject's neighbour in the whole batch, of which a part holds only some: "
            f"set pretrain.accumulate to 1, got {self.accumulate}, or koleo to 0",
        )


def check_plain_step(config: PretrainConfig) -> None:
    """That a step computes as the private one does: in fp32, its activations kept, its parts told by the batch size alone.

    Raises: ConfigError, else.
    """
    require(
        config.precision is Precision.fp32,
        f"pretrain.precision={config.precision.value} cannot be had with privacy, whose gradients subject by subject are "
        "clipped and noised in fp32; set it to fp32",
    )
    require(
        config.accumulate == 1 and not config.checkpointing,
        "pretrain.accumulate and pretrain.checkpointing cannot be had with privacy, whose samples are computed in parts of "
        "pretrain.batch_size subjects: set them to 1 and false, and lower pretrain.batch_size where memory is short",
    )
