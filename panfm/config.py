"""Typed settings of a study: what its sites agree on (`Recipe`), and what one rehearsal adds to it (`RunConfig`).

A `Recipe` is everything that travels to a site inside a signed task: values only, no path, no device, no privacy
switch. `RunConfig` inherits it and adds what only the machine of the rehearsal or of the coordinator knows. Recipes are
written as YAML in `panfm/conf/` and composed once, by `panfm.recipes`.

Schemas are unfrozen and avoid `Literal`: Hydra makes frozen dataclasses read-only and rejects literals.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import Enum

from panfm.errors import ConfigError
from panfm.organs import WITHOUT_SIDE, check_organ_names


class OrganMaskRule(Enum):
    """How Saliency-Guided Masking chooses the organs that the student does not see."""

    lift = "lift"
    threshold = "threshold"
    uniform = "uniform"
    none = "none"


class TrunkWeighting(Enum):
    """How the sites' votes on the shared groups (trunk and heads) are weighted."""

    subjects = "subjects"
    uniform = "uniform"
    balanced = "balanced"


class Missingness(Enum):
    """Why a subject lacks an organ: completely at random, by what is known, or by what is not."""

    mcar = "mcar"
    mar = "mar"
    mnar = "mnar"


class Sampler(Enum):
    """Which subjects of a site a training step sees."""

    subjects = "subjects"
    balanced = "balanced"


class Spacing(Enum):
    """What becomes of a scan's own voxel spacing when an organ is prepared."""

    resample = "resample"
    native = "native"


class CohortKind(Enum):
    """Where the pretend hospitals of a rehearsal get their scans."""

    synthetic = "synthetic"
    real = "real"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


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
        _require(
            len(self.shape) == 3 and min(self.shape) >= 1,
            f"organs.*.shape needs three positive voxel counts, got {self.shape}",
        )
        _require(
            len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0,
            f"organs.*.spacing_mm needs three positive millimetres, got {self.spacing_mm}",
        )
        _require(0 <= self.max_degree <= 5, f"organs.*.max_degree must be in 0 to 5, got {self.max_degree}")


@dataclass(slots=True, kw_only=True)
class PrepareConfig:
    """How a site turns its scans into the prepared store."""

    margin_voxels: int = 2
    """Extra voxels stored on each side of the grid; training crops the grid from it, shifted by at most this much."""
    clip_percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])
    """Foreground intensities below and above are clipped before normalisation (percent)."""

    def __post_init__(self) -> None:
        _require(self.margin_voxels >= 0, f"prepare.margin_voxels must be 0 or more, got {self.margin_voxels}")
        wanted = f"prepare.clip_percentiles needs two percents that rise within 0 to 100, got {self.clip_percentiles}"
        _require(len(self.clip_percentiles) == 2, wanted)
        low, high = self.clip_percentiles
        _require(0 <= low < high <= 100, wanted)


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

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "adapter_width", "predictor_width", "patch"):
            _require(getattr(self, name) >= 1, f"model.{name} must be at least 1, got {getattr(self, name)}")
        _require(
            self.width % self.heads == 0, f"model.width {self.width} must be a multiple of model.heads {self.heads}"
        )
        _require(
            (self.width // self.heads) % 2 == 0 and self.width // self.heads >= 6,
            f"model.width / model.heads must be even and 6 or more for rotary positions (a pair of features for each of "
            f"three axes), got {self.width}/{self.heads}",
        )
        _require(self.mlp_ratio > 0, f"model.mlp_ratio must be above 0, got {self.mlp_ratio}")


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

    def __post_init__(self) -> None:
        for name in ("rate", "explore", "threshold_probability"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"pretrain.organ_mask.{name} must be in 0 to 1, got {value}")
        _require(self.temperature > 0, f"pretrain.organ_mask.temperature must be above 0, got {self.temperature}")
        _require(self.threshold > 0, f"pretrain.organ_mask.threshold must be above 0, got {self.threshold}")
        _require(
            self.saliency_blocks >= 1,
            f"pretrain.organ_mask.saliency_blocks must be at least 1, got {self.saliency_blocks}",
        )


@dataclass(slots=True, kw_only=True)
class PatchMaskConfig:
    """Which patches of a visible organ the student must predict."""

    rate: float = 0.6
    """Share of an organ's patches that are masked."""
    block: int = 1
    """Patches a side of the cubes in which they are masked; 1 masks single patches at random."""

    def __post_init__(self) -> None:
        _require(0 < self.rate < 1, f"pretrain.patch_mask.rate must be above 0 and below 1, got {self.rate}")
        _require(self.block >= 1, f"pretrain.patch_mask.block must be at least 1, got {self.block}")


@dataclass(slots=True, kw_only=True)
class LossWeights:
    """Weights of the terms of DESIGN section 4."""

    patch: float = 1.0
    """(a) the teacher's features of masked patches inside visible organs."""
    seen: float = 0.5
    """(a) the same for the patches that the student did see, augmented, where the teacher saw them as they are."""
    organ: float = 0.5
    """(b) the teacher's organ token of a masked organ, from the student's subject token."""

    def __post_init__(self) -> None:
        for name in ("patch", "seen", "organ"):
            _require(getattr(self, name) >= 0, f"pretrain.loss.{name} must be 0 or more, got {getattr(self, name)}")
        _require(self.patch + self.seen + self.organ > 0, "pretrain.loss: at least one term needs a weight above 0")


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
            _require(getattr(self, name) >= 0, f"pretrain.augment.{name} must be 0 or more, got {getattr(self, name)}")
        _require(self.zoom < 1, f"pretrain.augment.zoom must be below 1, got {self.zoom}")
        _require(
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
    teacher_momentum: float = 0.99
    """EMA of the teacher at the first step; rises to 1 by a cosine over the whole run."""
    loss: LossWeights = field(default_factory=LossWeights)
    organ_mask: OrganMaskConfig = field(default_factory=OrganMaskConfig)
    patch_mask: PatchMaskConfig = field(default_factory=PatchMaskConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("steps_per_round", "batch_size"):
            _require(getattr(self, name) >= 1, f"pretrain.{name} must be at least 1, got {getattr(self, name)}")
        _require(self.learning_rate > 0, f"pretrain.learning_rate must be above 0, got {self.learning_rate}")
        _require(
            0 <= self.final_learning_rate <= self.learning_rate,
            f"pretrain.final_learning_rate must be in 0 to learning_rate, got {self.final_learning_rate}",
        )
        _require(self.warmup_steps >= 0, f"pretrain.warmup_steps must be 0 or more, got {self.warmup_steps}")
        _require(self.weight_decay >= 0, f"pretrain.weight_decay must be 0 or more, got {self.weight_decay}")
        _require(self.clip_norm > 0, f"pretrain.clip_norm must be above 0, got {self.clip_norm}")
        _require(
            0 <= self.teacher_momentum < 1,
            f"pretrain.teacher_momentum must be in 0 to 1 (1 excluded), got {self.teacher_momentum}",
        )


@dataclass(slots=True, kw_only=True)
class FederationConfig:
    """How the coordinator runs rounds and averages what comes back (DESIGN section 5)."""

    trunk_weights: TrunkWeighting = TrunkWeighting.subjects
    """Votes on trunk and heads."""
    organ_exponent: float = 1.0
    """Votes on an organ's group are subjects with that organ to this power: 0, 0.5 or 1."""
    server_rate: float = 1.0
    """Step along the mean delta; 1 is FedAvg."""
    min_sites: int = 1
    """Sites that must have joined before the first round, and answered before a round counts."""
    min_sites_per_group: int = 1
    """An organ group trained by fewer sites than this stays as it was in that round."""
    join_timeout_s: float = 60.0
    """How long the coordinator waits for sites to join (seconds)."""
    round_deadline_s: float = 3600.0
    """How long a round waits for answers (seconds); later answers are left out and named."""
    max_delta_norm: float = 1e3
    """Largest L2 norm of one site's delta of one group; above it the update is left out."""

    def __post_init__(self) -> None:
        _require(
            self.organ_exponent in (0.0, 0.5, 1.0),
            f"federation.organ_exponent must be 0, 0.5 or 1, got {self.organ_exponent}",
        )
        for name in ("server_rate", "join_timeout_s", "round_deadline_s", "max_delta_norm"):
            _require(getattr(self, name) > 0, f"federation.{name} must be above 0, got {getattr(self, name)}")
        for name in ("min_sites", "min_sites_per_group"):
            _require(getattr(self, name) >= 1, f"federation.{name} must be at least 1, got {getattr(self, name)}")


@dataclass(slots=True, kw_only=True)
class Recipe:
    """Everything the sites of a study agree on; travels inside each signed task."""

    recipe: str = "demo"
    """Name of the recipe, for people."""
    seed: int = 0
    """Root of every random stream that privacy does not keep secret."""
    rounds: int = 5
    """Rounds of the run."""
    threads: int = 2
    """Intra-op threads of torch; part of the recipe because sums depend on it."""
    organs: dict[str, OrganGrid] = field(default_factory=dict)
    """The organ vocabulary of the study, in order, with the grid of each."""
    model: ModelConfig = field(default_factory=ModelConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**63, f"seed must be in 0 to 2**63, got {self.seed}")
        _require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")
        _require(self.threads >= 1, f"threads must be at least 1, got {self.threads}")
        check_organ_names(self.organs)
        for organ, grid in self.organs.items():
            _require(
                all(side % self.model.patch == 0 for side in grid.shape),
                f"organs.{organ}.shape {list(grid.shape)} must be multiples of model.patch {self.model.patch}",
            )
            _require(
                max(grid.shape) > self.model.patch,
                f"organs.{organ}.shape {list(grid.shape)} holds a single patch of model.patch {self.model.patch}; "
                "a patch is predicted from others, so there must be two or more",
            )
            _require(
                grid.spacing is not Spacing.native or self.model.patch % 2**grid.max_degree == 0,
                f"organs.{organ}.spacing=native needs a patch that halves organs.{organ}.max_degree = {grid.max_degree} times, "
                f"and model.patch {self.model.patch} does not; choose a power of two such as 8 or 16, or a smaller max_degree",
            )
        shift, margin = self.pretrain.augment.shift_voxels, self.prepare.margin_voxels
        _require(shift <= margin, f"pretrain.augment.shift_voxels {shift} must not pass prepare.margin_voxels {margin}")
        self._check_augment()

    def _check_augment(self) -> None:
        """Each organ's own settings, and that no organ with a side is mirrored left to right."""
        augment = self.pretrain.augment
        unknown = sorted(augment.organs.keys() - self.organs.keys())
        _require(
            not unknown, f"pretrain.augment.organs: {', '.join(unknown)} is no organ of `organs`; correct the name"
        )
        for organ in self.organs:
            _require(
                augment.of(organ).flip[0] == 0 or organ in WITHOUT_SIDE,
                f"pretrain.augment: the left of the {organ} is not like its right, so its mirror image is nobody's; set "
                f"pretrain.augment.organs.{organ}.flip to [0, ...]. Without a side are {' and '.join(WITHOUT_SIDE)}",
            )

    @property
    def total_steps(self) -> int:
        """Optimiser steps of a site that takes part in every round."""
        return self.rounds * self.pretrain.steps_per_round


class Engine(Enum):
    """What carries the messages of a rehearsal."""

    in_process = "in_process"
    loopback = "loopback"


@dataclass(slots=True, kw_only=True)
class CohortConfig:
    """The pretend hospitals of a rehearsal."""

    kind: CohortKind = CohortKind.synthetic
    """synthetic: the seeded generator; real: the folder named by `data`."""
    subjects_per_site: int = 40
    """Synthetic: subjects of each hospital."""
    probe_subjects: int = 200
    """Synthetic: complete subjects on which probes are trained, seen by no site."""
    test_subjects: int = 200
    """Synthetic: complete subjects on which probes are tested, seen by no site."""
    voxels: int = 32
    """Synthetic: voxels a side of each organ volume."""
    missingness: Missingness = Missingness.mcar
    """Synthetic: why a subject lacks an organ that its hospital images."""
    missing_rate: float = 0.3
    """Synthetic: share of missing organs among those that the hospital images; the same for each mechanism."""
    train_share: float = 0.667
    """Real: share of the brains that train, chosen by a hash of the subject and the seed; the rest are held out. With 2/3 the
    seeds 0, 1 and 2 hold out each brain once."""

    def __post_init__(self) -> None:
        for name in ("subjects_per_site", "probe_subjects", "test_subjects", "voxels"):
            _require(getattr(self, name) >= 1, f"cohort.{name} must be at least 1, got {getattr(self, name)}")
        _require(
            0 <= self.missing_rate < 1, f"cohort.missing_rate must be in 0 to 1 (1 excluded), got {self.missing_rate}"
        )
        _require(0 < self.train_share < 1, f"cohort.train_share must be above 0 and below 1, got {self.train_share}")


@dataclass(slots=True, kw_only=True)
class RunConfig(Recipe):
    """A recipe and what only the coordinator's or the rehearsal's own machine knows."""

    name: str = ""
    """Name of the run, and of its folder below `runs`; empty: the recipe's name and the time."""
    runs: str = "runs"
    """Folder that holds the runs."""
    init_from: str = ""
    """Folder of an exported model to start from; empty: a seeded initialisation."""
    sites: int = 6
    """Rehearsal: number of pretend hospitals."""
    data: str = ""
    """Rehearsal: folder of real scans, for cohort.kind=real."""
    workers: int = 2
    """Rehearsal: processes that write and prepare scans, and in which sites train side by side; 1: all in this process."""
    engine: Engine = Engine.in_process
    """Rehearsal: in_process calls the apps directly; loopback starts Flower's own SuperLink and SuperNodes on 127.0.0.1."""
    port: int = 0
    """Rehearsal: the SuperLink's port with engine=loopback; 0 takes any free one."""
    cohort: CohortConfig = field(default_factory=CohortConfig)

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        for name in ("sites", "workers"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(0 <= self.port < 65536, f"port must be in 0 to 65535, got {self.port}")
