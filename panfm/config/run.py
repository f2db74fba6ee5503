"""What only the machine of the coordinator or of a rehearsal knows, besides the recipe."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from panfm.config.faults import NEEDS_PROCESS, FaultConfig
from panfm.config.ray import RayConfig
from panfm.config.recipe import Recipe
from panfm.config.require import require


class Missingness(Enum):
    """Why a subject lacks an organ: completely at random, by what is known, or by what is not."""

    mcar = "mcar"
    mar = "mar"
    mnar = "mnar"


class CohortKind(Enum):
    """Where the pretend hospitals of a rehearsal get their scans."""

    synthetic = "synthetic"
    real = "real"


class Engine(Enum):
    """What carries the messages of a rehearsal."""

    in_process = "in_process"
    loopback = "loopback"
    flower = "flower"


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
    validation_share: float = 0.0
    """Share of each hospital's subjects that it does not train on and judges models by (split `validation`), chosen by a hash of
    the subject and the seed; evaluations need some."""
    train_share: float = 0.667
    """Real: share of the brains that train, chosen by a hash of the subject and the seed; the rest are held out. With 2/3 the
    seeds 0, 1 and 2 hold out each brain once."""
    epsilon: float = 8.0
    """With privacy: what each subject may lose, in the policy of every hospital (dimensionless)."""
    delta: float = 1e-5
    """With privacy: chance that this bound fails, in the policy of every hospital."""
    own_epsilon: dict[str, float] = field(default_factory=dict)
    """With privacy: hospitals, by name, whose policy has another epsilon. On a command line: +cohort.own_epsilon.neuro=2."""

    def __post_init__(self) -> None:
        for name in ("subjects_per_site", "probe_subjects", "test_subjects", "voxels"):
            require(getattr(self, name) >= 1, f"cohort.{name} must be at least 1, got {getattr(self, name)}")
        require(
            0 <= self.missing_rate < 1, f"cohort.missing_rate must be in 0 to 1 (1 excluded), got {self.missing_rate}"
        )
        require(
            0 <= self.validation_share < 1,
            f"cohort.validation_share must be in 0 to 1 (1 excluded), got {self.validation_share}",
        )
        require(0 < self.train_share < 1, f"cohort.train_share must be above 0 and below 1, got {self.train_share}")
        for name, epsilon in {
            "epsilon": self.epsilon,
            **{f"own_epsilon.{s}": e for s, e in self.own_epsilon.items()},
        }.items():
            require(0 < epsilon <= 10, f"cohort.{name} must be above 0 and at most 10, as in a policy, got {epsilon}")
        require(
            0 < self.delta <= 1e-3, f"cohort.delta must be above 0 and at most 0.001, as in a policy, got {self.delta}"
        )


@dataclass(slots=True, kw_only=True)
class RunConfig(Recipe):
    """A recipe and what only the coordinator's or the rehearsal's own machine knows."""

    name: str = ""
    """Name of the run, and of its folder below `runs`; empty: the recipe's name and the time."""
    runs: str = "runs"
    """Folder that holds the runs."""
    resume: str = ""
    """Name of a run that was killed, stopped or fell short, to go on with; its settings are its own, from its folder."""
    init_from: str = ""
    """Folder of an exported model to start from; empty: a seeded initialisation."""
    tensorboard: bool = False
    """Whether TensorBoard event files are written into the run's folder while it goes on."""
    mlflow: str = ""
    """MLflow tracking store that follows the run, such as sqlite:////srv/mlflow.db; empty: none."""
    sites: int = 6
    """Rehearsal: number of pretend hospitals."""
    data: str = ""
    """Rehearsal: folder of real scans, for cohort.kind=real."""
    workers: int = 2
    """Rehearsal: processes that write and prepare scans, and in which sites train side by side; 1: all in this process."""
    engine: Engine = Engine.in_process
    """Rehearsal: in_process calls the apps directly; loopback starts Flower's own SuperLink and SuperNodes on 127.0.0.1; flower
    is Flower's simulation runtime on Ray, for several GPUs or machines."""
    port: int = 0
    """Rehearsal: the SuperLink's port with engine=loopback; 0 takes any free one."""
    device: str = "cpu"
    """Rehearsal: where the pretend hospitals train, cpu or cuda; it stands in their policies."""
    ray: RayConfig = field(default_factory=RayConfig)
    cohort: CohortConfig = field(default_factory=CohortConfig)
    faults: FaultConfig = field(default_factory=FaultConfig)

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        for name in ("sites", "workers"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(0 <= self.port < 65536, f"port must be in 0 to 65535, got {self.port}")
        require(self.device in ("cpu", "cuda"), f"device must be cpu or cuda, got {self.device}")
        require(
            self.ray.gpus == 0 or self.engine is Engine.flower,
            "ray.gpus needs engine=flower; leave it 0, or set that too",
        )
        require(
            not (self.resume and (self.name or self.init_from)),
            "resume= goes on with a run under its own name and from its own model; leave out name= and init_from=",
        )
        self._check_faults()

    @property
    def run_name(self) -> str:
        """Name of the run that is begun or gone on with."""
        return self.resume or self.name

    def _check_faults(self) -> None:
        """That the engine can make the faults that are asked for."""
        if self.faults.rate == 0:
            return
        require(self.engine is Engine.in_process, f"faults need engine=in_process, got {self.engine.name}")
        asked = [kind.name for kind in self.faults.kinds if kind in NEEDS_PROCESS]
        require(
            not asked or self.workers > 1,
            f"faults.kinds holds {' and '.join(asked)}, for which each site needs a process; set workers=2 or leave it out",
        )
