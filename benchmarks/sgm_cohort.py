"""The people of `benchmarks/sgm.py`: six synthetic hospitals with partial organ sets, and complete subjects for the probes.

The generator's settings stand here and nowhere else. They were committed before any arm was compared, and are not changed to
please a method: whoever changes one starts the comparison anew (another folder below runs/ follows from them).
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from panfm import recipes
from panfm.config import Missingness, OrganGrid, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore, StoreEntry
from panfm.data.synthetic import SyntheticSite, recommended_grids, write_synthetic_site
from panfm.evaluation.learning_check import HeldOut, read_held_out
from panfm.evaluation.probes import Floats
from simulation.partition import synthetic_hospitals


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """Everything that decides who is in the cohort and what their scans look like."""

    seed: int = 0
    """Of people, scanners and who lacks what; the seeds of the arms are others."""
    voxels: int = 24
    """Voxels a side of each organ's grid."""
    hospitals: int = 6
    """Those of `simulation.partition`: three to five organs each, and one that images all seven."""
    subjects_per_hospital: int = 334
    """2,004 in all to pre-train on."""
    missingness: Missingness = Missingness.mnar
    """Why a subject lacks an organ that its hospital images: the latent severity of illness in it."""
    missing_rate: float = 0.3
    """Share of each imaged organ's scans that are missing."""
    probe_subjects: int = 600
    """Complete subjects on whom probes are fitted, seen by no hospital, under all hospitals' scanners in turn."""
    probe_sets: int = 3
    """Disjoint sets into which they fall; an AUROC is the mean over one probe fitted on each."""
    test_subjects: int = 500
    """Complete subjects on whom probes are tested, likewise."""

    @property
    def folder_name(self) -> str:
        """Another for other settings."""
        return f"cohort-{hashlib.sha256(repr(self).encode()).hexdigest()[:12]}"

    @property
    def sites(self) -> tuple[SyntheticSite, ...]:
        """The hospitals and their organs."""
        return synthetic_hospitals(self.hospitals, self.subjects_per_hospital, tuple(self.grids))

    @property
    def grids(self) -> dict[str, OrganGrid]:
        """Every organ's grid."""
        return recommended_grids(self.voxels)


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Subjects of one folder, disjoint from those of the others."""

    folder: Path
    site: SyntheticSite
    first_subject: int
    missing_rate: float = 0.0
    split: str = ""
    scanners: tuple[str, ...] = ()


def people(generator: Generator, folder: Path) -> list[People]:
    """The hospitals, then complete subjects for the probes."""
    made, first = [], 0
    for site in generator.sites:
        made.append(
            People(folder=folder / site.name, site=site, first_subject=first, missing_rate=generator.missing_rate)
        )
        first += site.num_subjects
    scanners = tuple(site.name for site in generator.sites)
    for split, number in (("probe", generator.probe_subjects), ("test", generator.test_subjects)):
        site = SyntheticSite(split, tuple(generator.grids), number)
        made.append(People(folder=folder / split, site=site, first_subject=first, split=split, scanners=scanners))
        first += number
    return made


def make_people(generator: Generator, asked: People) -> None:
    """Scans, and the store prepared from them; the scans are removed again."""
    if (asked.folder / "store" / "table.csv").exists():
        return
    write_synthetic_site(
        asked.folder,
        asked.site,
        seed=generator.seed,
        voxels=generator.voxels,
        missingness=generator.missingness,
        missing_rate=asked.missing_rate,
        first_subject=asked.first_subject,
        split=asked.split,
        scanners=asked.scanners,
    )
    prepare_store(asked.folder, asked.folder / "store", generator.grids, recipes.load([]).prepare)
    shutil.rmtree(asked.folder / "scans")


def hospital(folder: Path, site: str, organs: Sequence[str], recipe: Recipe) -> SubjectDataset:
    """One hospital's subjects, of these organs."""
    return SubjectDataset(PreparedStore.open(folder / site / "store"), organs, recipe.organs)


def everybody(folder: Path, sites: Sequence[SyntheticSite], organs: Sequence[str], recipe: Recipe) -> SubjectDataset:
    """The subjects of all hospitals as if they were one, of these organs; whoever has none of them is left out."""
    entries: list[StoreEntry] = []
    for site in sites:
        store = PreparedStore.open(folder / site.name / "store")
        entries += [replace(entry, file=f"{site.name}/store/{entry.file}") for entry in store.entries]
    return SubjectDataset(PreparedStore(folder, tuple(entries)), organs, recipe.organs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """Who fits the probes and who tests them."""

    probe: HeldOut
    test: HeldOut
    probe_sets: int

    @property
    def categories(self) -> list[str]:
        """The disease categories, by name."""
        return sorted(name for name in self.test.labels if name.startswith("cat_"))

    @property
    def test_labels(self) -> Floats:
        """[categories, n]."""
        return np.stack([self.test.labels[name] for name in self.categories])

    @property
    def sets(self) -> list[tuple[slice, Floats]]:
        """Rows of the probe subjects of each disjoint set, and their labels [categories, m]."""
        labels = np.stack([self.probe.labels[name] for name in self.categories])
        size = labels.shape[1] // self.probe_sets
        rows = [slice(place * size, (place + 1) * size) for place in range(self.probe_sets)]
        return [(own, labels[:, own]) for own in rows]


def read_judges(folder: Path, generator: Generator, recipe: Recipe) -> Judges:
    """The held-out subjects."""
    probe, test = (read_held_out([folder / split], recipe, split) for split in ("probe", "test"))
    return Judges(probe=probe, test=test, probe_sets=generator.probe_sets)
