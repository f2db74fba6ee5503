"""Pretend hospitals on disk: each a real folder with its own scans, policy and prepared store, as a site keeps them.

<run>/hospitals/<site>/   scans.csv, store/, policy.yaml, keys/ made for this run alone, and the site's state
<run>/evaluation/         the subjects of the probes after the run; those of split `test` are trained on by no site
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from panfm.config import CohortConfig, CohortKind, RunConfig
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.errors import ConfigError, RunError
from panfm.site.onboarding import begin_identity
from panfm.site.policy import Bounds, Policy, PrivacyDemand, PrivacyMode, Public, TaskKind
from panfm.site.policy_file import write_policy
from simulation.held_out import hold_out
from simulation.partition import synthetic_hospitals
from simulation.real_cohort import write_real_hospitals

OnProgress = Callable[[str, int, int], None]
"""Called with (what is being made, done, in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalCohort:
    """What the pretend hospitals hold."""

    hospitals: dict[str, Path]
    """site -> its folder, in sorted order."""
    evaluation: tuple[Path, ...]
    """Folders with scans.csv, labels.csv and store/ of the subjects on which probes are trained (split `probe`) and tested
    (split `test`)."""


def make_cohort(config: RunConfig, run_folder: Path, coordinator_key: str, on_progress: OnProgress) -> RehearsalCohort:
    """Write or index the scans, prepare every store, and give each hospital a policy, a key and an audit log.

    Folders are made side by side in `config.workers` processes; what is in them does not depend on how many.

    Args:
        coordinator_key: public key that the policies name.
    Raises: ConfigError or DataError when the cohort cannot be made.
    """
    make_jobs = _synthetic_jobs if config.cohort.kind is CohortKind.synthetic else _real_jobs
    jobs = make_jobs(config, run_folder)
    _check_named(config.cohort.own_epsilon, [job.folder.name for job in jobs if not job.is_evaluation])
    _make_folders(jobs, config.workers, on_progress)
    hospitals = {job.folder.name: job.folder for job in jobs if not job.is_evaluation}
    for site, folder in hospitals.items():
        organs = {entry.organ for entry in PreparedStore.open(folder / "store").entries}
        held = [organ for organ in config.organs if organ in organs]
        write_policy(folder, _policy(site, coordinator_key, held, config))
        begin_identity(folder, site)
    evaluation = tuple(job.folder for job in jobs if job.is_evaluation)
    return RehearsalCohort(hospitals=dict(sorted(hospitals.items())), evaluation=evaluation)


def _check_named(own_epsilon: Mapping[str, float], hospitals: Sequence[str]) -> None:
    if unknown := sorted(own_epsilon.keys() - set(hospitals)):
        raise ConfigError(
            f"cohort.own_epsilon: no hospital is called {unknown[0]}; there are {', '.join(sorted(hospitals))}"
        )


def _policy(site: str, coordinator_key: str, organs: Sequence[str], config: RunConfig) -> Policy:
    """The policy of a pretend hospital: its people are invented or public, so it takes part in whatever is rehearsed.

    With privacy it is as strict as one that means it: a budget, and nothing of training leaves but what is noised and charged.
    What it tells of the model on subjects whom it holds out (`cohort.validation_share`) stays public, or nobody could judge.
    """
    with_privacy = config.privacy.is_on
    return Policy(
        site=site,
        coordinator_keys=(coordinator_key,),
        organs=tuple(organs),
        tasks=tuple(TaskKind),
        privacy=_demand(site, config.cohort) if with_privacy else PrivacyDemand(mode=PrivacyMode.none),
        public=(Public.metrics,) if with_privacy else tuple(Public),
        bounds={"rounds": Bounds(most=1_000_000)},
        min_subjects=1,
        min_subjects_per_organ=1,
        rounds_per_day=1_000_000,
        min_free_memory_gib=0,
        device=config.device,
    )


def _demand(site: str, cohort: CohortConfig) -> PrivacyDemand:
    epsilon = cohort.own_epsilon.get(site, cohort.epsilon)
    return PrivacyDemand(mode=PrivacyMode.dp, epsilon=epsilon, delta=cohort.delta)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Synthetic:
    """Synthetic subjects to write before a folder is prepared."""

    site: SyntheticSite
    first_subject: int
    missing_rate: float
    split: str = ""
    scanners: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One folder to make, in a process of its own."""

    folder: Path
    config: RunConfig
    is_evaluation: bool
    synthetic: _Synthetic | None = None
    """None where the table is there already."""


def _make_folders(jobs: Sequence[_Job], workers: int, on_progress: OnProgress) -> None:
    title = "making hospitals"
    on_progress(title, 0, len(jobs))
    for done, _ in enumerate(_made(jobs, workers), start=1):
        on_progress(title, done, len(jobs))


def _made(jobs: Sequence[_Job], workers: int) -> Iterator[None]:
    """Make the folders; yields after each."""
    if workers == 1:
        yield from map(_make_folder, jobs)
        return
    # A worker dies of Ctrl-C without a word; the process that the person started speaks for all.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=signal.signal, initargs=quiet)
    try:
        # The largest first: a large folder that begins last keeps one process busy while the others have nothing left.
        for future in as_completed([pool.submit(_make_folder, job) for job in sorted(jobs, key=_size, reverse=True)]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RunError("a process that makes the hospitals was killed, perhaps for memory; try workers=1") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _size(job: _Job) -> int:
    """About how many scans a folder will hold; 0 where that is not known before."""
    site = job.synthetic.site if job.synthetic else None
    return site.num_subjects * len(site.organs) if site else 0


def _make_folder(job: _Job) -> None:
    cohort, synthetic = job.config.cohort, job.synthetic
    if synthetic is not None:
        write_synthetic_site(
            job.folder,
            synthetic.site,
            seed=job.config.seed,
            voxels=cohort.voxels,
            missingness=cohort.missingness,
            missing_rate=synthetic.missing_rate,
            first_subject=synthetic.first_subject,
            split=synthetic.split,
            scanners=synthetic.scanners,
        )
    if not job.is_evaluation:
        hold_out(job.folder, cohort.validation_share, tuple(job.config.organs), job.config.seed)
    prepare_store(job.folder, job.folder / "store", job.config.organs, job.config.prepare)


def _real_jobs(config: RunConfig, run_folder: Path) -> list[_Job]:
    if not config.data:
        raise ConfigError("cohort.kind=real needs data=FOLDER, the folder of real scans; recipe=demo needs none")
    share, hospitals = config.cohort.train_share, run_folder / "hospitals"
    real = write_real_hospitals(Path(config.data), hospitals, train_share=share, seed=config.seed)
    evaluation = _Job(folder=real.evaluation, config=config, is_evaluation=True)
    return [evaluation, *(_Job(folder=folder, config=config, is_evaluation=False) for folder in real.sites.values())]


def _synthetic_jobs(config: RunConfig, run_folder: Path) -> list[_Job]:
    """Complete held-out subjects that mix the hospitals' scanners, and hospitals with missing organs."""
    vocabulary = tuple(config.organs)
    sites = synthetic_hospitals(config.sites, config.cohort.subjects_per_site, vocabulary)
    jobs = []
    first = 0
    for site in sites:
        rate = config.cohort.missing_rate if len(site.organs) > 1 else 0.0
        people = _Synthetic(site=site, first_subject=first, missing_rate=rate)
        folder = run_folder / "hospitals" / site.name
        jobs.append(_Job(folder=folder, config=config, is_evaluation=False, synthetic=people))
        first += site.num_subjects
    scanners = tuple(site.name for site in sites)
    for split, number in (("probe", config.cohort.probe_subjects), ("test", config.cohort.test_subjects)):
        people = _Synthetic(
            site=SyntheticSite(name=split, organs=vocabulary, num_subjects=number),
            first_subject=first,
            missing_rate=0.0,
            split=split,
            scanners=scanners,
        )
        folder = run_folder / "evaluation" / split
        jobs.append(_Job(folder=folder, config=config, is_evaluation=True, synthetic=people))
        first += number
    return sorted(jobs, key=lambda job: not job.is_evaluation)  # the largest first, so that no process waits at the end
