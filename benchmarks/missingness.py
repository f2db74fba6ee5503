"""Does it matter why organs are missing in pre-training? The same people, thinned by three mechanisms at one rate.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/missingness.py [--write]`; it prints the table, and with --write writes it
to `benchmarks/missingness.md`. People are made once below runs/missingness/, and what was found of each seed and mechanism is
kept there: a second call goes on where the first was stopped.

One cohort of complete synthetic people is seen through each mechanism (`panfm.evaluation.missing_training`): organs missing at
random, by age, or by the latent illness of the organ itself, all at one rate, so that who lacks what is the only difference; and
whole, as the yardstick. A model is trained on each, pooled, by `recipe=demo` in one round, and probed on complete people.
Differences are paired: the same people, probes and resamples.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.machine import provenance
from panfm import recipes, update
from panfm.config import Missingness, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.prepare import prepare_store
from panfm.data.store import PreparedStore
from panfm.data.synthetic import SyntheticSite, recommended_grids, write_synthetic_site
from panfm.evaluation.cohort import read_cohort
from panfm.evaluation.missing_training import UnderMechanism, cost_of_missingness
from panfm.evaluation.probes import Floats
from panfm.evaluation.resampling import estimate
from panfm.models.build import initial_parameters
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import train_round

FOLDER = Path("runs/missingness")
PEOPLE_SEED = 0
"""Of people, scanners, and who would lack what; the seeds of training are others."""
SCANNERS = ("north", "south", "east", "west")
SETTINGS = ("recipe=demo", "rounds=1")
FIGURES = ("fitted_complete", "fitted_missing", "presence")


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything."""

    train: int = 400
    probe: int = 400
    test: int = 400
    voxels: int = 24
    steps: int = 200
    rate: float = 0.4
    """Share of each organ's scans that are missing."""
    seeds: tuple[int, ...] = (0, 1, 2)
    resamples: int = 1000

    @property
    def folder(self) -> Path:
        """Another for other people."""
        return FOLDER / f"{self.train}-{self.probe}-{self.test}-{self.voxels}"


WAYS: dict[str, tuple[Missingness, bool]] = {
    "nothing missing": (Missingness.mcar, False),
    "MCAR: at random": (Missingness.mcar, True),
    "MAR: by age": (Missingness.mar, True),
    "MNAR: by latent illness": (Missingness.mnar, True),
}
"""Mechanism, and whether anything is missing at all."""
YARDSTICK = next(iter(WAYS))


def make_people(size: Size, recipe: Recipe) -> None:
    """Complete people of the three splits, prepared; the scans are removed again."""
    first = 0
    for split, number in (("pretrain", size.train), ("probe", size.probe), ("test", size.test)):
        folder = size.folder / split
        if not (folder / "store" / "table.csv").exists():
            write_synthetic_site(
                folder,
                SyntheticSite(split, SEVEN_ORGANS, number),
                seed=PEOPLE_SEED,
                voxels=size.voxels,
                missingness=Missingness.mcar,
                missing_rate=0.0,
                first_subject=first,
                split=split,
                scanners=SCANNERS,
            )
            prepare_store(folder, folder / "store", recipe.organs, recipe.prepare)
            shutil.rmtree(folder / "scans")
        first += number


def recipe_of(size: Size, seed: int) -> Recipe:
    """The demo's, in one round."""
    settings = (*SETTINGS, f"seed={seed}", f"pretrain.steps_per_round={size.steps}")
    return replace(recipes.recipe_of(recipes.load(settings)), organs=recommended_grids(size.voxels))


def measured(size: Size, seed: int, way: str) -> dict[str, Floats]:
    """The three figures of the macro average over disease categories, each [1 + resamples]."""
    kept = size.folder / f"{way.partition(':')[0].replace(' ', '-')}-{size.steps}-{size.rate}-{seed}.npz"
    if not kept.exists():
        row = _computed(size, recipe_of(size, seed), *WAYS[way])
        np.savez(kept, **{name: getattr(row, name) for name in FIGURES})
    with np.load(kept) as found:
        return {name: found[name] for name in FIGURES}


def _computed(size: Size, recipe: Recipe, mechanism: Missingness, thin: bool) -> UnderMechanism:
    def train(store: PreparedStore) -> Mapping[str, Tensor]:
        start = initial_parameters(recipe.model, recipe.organs, recipe.seed)
        dataset = SubjectDataset(store, tuple(recipe.organs), recipe.organs)
        return update.add(start, train_round(start, start, dataset, recipe, site="all", round_number=1).deltas)

    fit, test = (read_cohort([size.folder / split], recipe, split) for split in ("probe", "test"))
    store, rate = PreparedStore.open(size.folder / "pretrain" / "store"), size.rate if thin else 0.0
    found = cost_of_missingness(
        train, store, recipe, fit, test, seed=PEOPLE_SEED, rate=rate, mechanisms=(mechanism,), resamples=size.resamples
    )
    return next(row for row in found if row.target.endswith("categories"))


def table(size: Size) -> Iterator[str]:
    """A line for each way; means over the seeds, intervals over seeds' means of resampled people."""
    yield (
        "| missing in pre-training | probe fitted on complete people | lost to nothing missing | probe fitted on people who lack "
        "organs by the same mechanism | presence alone |"
    )
    yield "|---|---|---|---|---|"
    yardstick = _mean(size, YARDSTICK)["fitted_complete"]
    for way in WAYS:
        found = _mean(size, way)
        lost = "" if way == YARDSTICK else _words(yardstick - found["fitted_complete"])
        others = (_words(found[name]) if way != YARDSTICK else "" for name in FIGURES[1:])
        yield f"| {way} | {_words(found['fitted_complete'])} | {lost} | {' | '.join(others)} |"


def _mean(size: Size, way: str) -> dict[str, Floats]:
    of_seeds = [measured(size, seed, way) for seed in size.seeds]
    return {name: np.mean([found[name] for found in of_seeds], axis=0) for name in FIGURES}


def _words(values: Floats) -> str:
    found = estimate(values)
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def main(words: Sequence[str] | None = None, size: Size | None = None) -> None:
    """Measure what is not kept yet, and print or write the table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--write", action="store_true", help="write benchmarks/missingness.md")
    given, size = options.parse_args(words), size or Size()
    make_people(size, recipe_of(size, 0))
    for seed in size.seeds:
        for way in WAYS:
            print(f"seed {seed}, {way}: {_words(measured(size, seed, way)['fitted_complete'])}", flush=True)
    text = "\n".join((_head(size), "", *table(size))) + "\n"
    print(text)
    if given.write:
        Path(__file__).with_suffix(".md").write_text(text)


def _head(size: Size) -> str:
    return (
        f"# Why organs are missing\n\n{provenance()}.\n\n"
        f"Macro AUROC of the disease categories; {size.train} people to train on, {size.probe} to fit probes, {size.test} to "
        f"test, {size.voxels} voxels a side, {size.steps} steps, each organ missing in {size.rate:.0%}; the mean of "
        f"{len(size.seeds)} seeds, with 95 % of {size.resamples} resamples of the test people."
    )


if __name__ == "__main__":
    main()
