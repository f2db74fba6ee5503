"""Pretend hospitals on disk: each a real folder with its own scans, policy and prepared store, as a site keeps them.

<run>/hospitals/<site>/   scans.csv, store/, policy.yaml and the site's state
<run>/evaluation/         the subjects of the probes after the run; those of split `test` are trained on by no site
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from panfm.config import CohortKind, RunConfig
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.errors import ConfigError
from panfm.site.policy import Policy, write_policy
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
    """Write or index the scans, prepare every store, and give each hospital a policy.

    Args:
        coordinator_key: public key that the policies name.
    Raises: ConfigError or DataError when the cohort cannot be made.
    """
    if config.cohort.kind is CohortKind.synthetic:
        cohort = _synthetic(config, run_folder, on_progress)
    else:
        cohort = _real(config, run_folder)
    for site, folder in cohort.hospitals.items():
        store = _prepare(config, folder, f"preparing {site}", on_progress)
        organs = {entry.organ for entry in store.entries}
        held = [organ for organ in config.organs if organ in organs]
        write_policy(folder, Policy(site=site, coordinator_key=coordinator_key, organs=held))
    for folder in cohort.evaluation:
        _prepare(config, folder, "preparing the subjects for probes", on_progress)
    return cohort


def _prepare(config: RunConfig, folder: Path, title: str, on_progress: OnProgress) -> PreparedStore:
    return prepare_store(
        folder,
        folder / "store",
        config.organs,
        config.prepare,
        workers=config.workers,
        on_scan=lambda done, total: on_progress(title, done, total),
    )


def _real(config: RunConfig, run_folder: Path) -> RehearsalCohort:
    if not config.data:
        raise ConfigError("cohort.kind=real needs data=FOLDER, the folder of real scans; recipe=demo needs none")
    real = write_real_hospitals(Path(config.data), run_folder / "hospitals", train_share=config.cohort.train_share)
    return RehearsalCohort(hospitals=dict(sorted(real.sites.items())), evaluation=(real.evaluation,))


def _synthetic(config: RunConfig, run_folder: Path, on_progress: OnProgress) -> RehearsalCohort:
    jobs = _synthetic_jobs(config, run_folder)
    total = sum(job.site.num_subjects for job in jobs)
    done = 0
    with ProcessPoolExecutor(config.workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_write, job) for job in jobs]):
            done += future.result()
            on_progress("making synthetic subjects", done, total)
    hospitals = {job.site.name: job.folder for job in jobs if not job.split}
    evaluation = tuple(job.folder for job in jobs if job.split)
    return RehearsalCohort(hospitals=dict(sorted(hospitals.items())), evaluation=evaluation)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One folder of synthetic subjects to write."""

    folder: Path
    site: SyntheticSite
    config: RunConfig
    first_subject: int
    missing_rate: float
    split: str = ""
    scanners: tuple[str, ...] = ()


def _synthetic_jobs(config: RunConfig, run_folder: Path) -> list[_Job]:
    """Hospitals with missing organs, and complete held-out subjects that mix the hospitals' scanners."""
    vocabulary = tuple(config.organs)
    sites = synthetic_hospitals(config.sites, config.cohort.subjects_per_site, vocabulary)
    jobs = []
    first = 0
    for site in sites:
        folder = run_folder / "hospitals" / site.name
        rate = config.cohort.missing_rate if len(site.organs) > 1 else 0.0
        jobs.append(_Job(folder=folder, site=site, config=config, first_subject=first, missing_rate=rate))
        first += site.num_subjects
    scanners = tuple(site.name for site in sites)
    for split, number in (("probe", config.cohort.probe_subjects), ("test", config.cohort.test_subjects)):
        held_out = SyntheticSite(name=split, organs=vocabulary, num_subjects=number)
        folder = run_folder / "evaluation" / split
        jobs.append(
            _Job(
                folder=folder,
                site=held_out,
                config=config,
                first_subject=first,
                missing_rate=0.0,
                split=split,
                scanners=scanners,
            )
        )
        first += number
    return jobs


def _write(job: _Job) -> int:
    cohort = job.config.cohort
    write_synthetic_site(
        job.folder,
        job.site,
        seed=job.config.seed,
        voxels=cohort.voxels,
        missingness=cohort.missingness,
        missing_rate=job.missing_rate,
        first_subject=job.first_subject,
        split=job.split,
        scanners=job.scanners,
    )
    return job.site.num_subjects
