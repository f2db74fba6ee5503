"""A complete synthetic cohort seen through a mechanism is the cohort that would have been written under it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from panfm.config import Missingness, Recipe
from panfm.data.store import PreparedStore
from panfm.data.synthetic import SyntheticSite, write_synthetic_site
from panfm.errors import DataError
from panfm.evaluation.cohort import read_cohort
from panfm.evaluation.missing_training import cost_of_missingness, thinned
from panfm.models.build import initial_parameters

ORGANS = ("brain", "liver", "spleen")
MakeSite = Callable[..., Path]


def _people(first: int, number: int) -> dict[str, tuple[str, ...]]:
    return {f"sub-{index:05d}": ORGANS for index in range(first, first + number)}


@pytest.mark.parametrize("mechanism", list(Missingness))
def test_the_same_organs_are_missing_as_in_a_cohort_written_so(
    tmp_path: Path, make_site: MakeSite, mechanism: Missingness
) -> None:
    site = SyntheticSite("north", ORGANS, 6)
    write_synthetic_site(tmp_path, site, seed=3, voxels=8, missingness=mechanism, missing_rate=0.4, first_subject=20)
    with (tmp_path / "scans.csv").open(newline="") as table:
        written = {(row["subject"], row["organ"]) for row in csv.DictReader(table)}
    store = PreparedStore.open(make_site("a", _people(20, 6)) / "store")
    assert {(e.subject, e.organ) for e in thinned(store, 3, mechanism, 0.4).entries} == written
    assert len(store.entries) == 18, "the store itself is as it was"


def test_all_mechanisms_take_away_equally_much(make_site: MakeSite) -> None:
    store = PreparedStore.open(make_site("a", _people(0, 400)) / "store")
    left = {mechanism: len(thinned(store, 3, mechanism, 0.4).entries) / len(store.entries) for mechanism in Missingness}
    assert all(share == pytest.approx(0.6, abs=0.05) for share in left.values()), left


def test_people_who_are_not_synthetic_are_refused(make_site: MakeSite) -> None:
    store = PreparedStore.open(make_site("a", {"sub-x1": ORGANS}) / "store")
    with pytest.raises(DataError, match="no synthetic subject"):
        thinned(store, 3, Missingness.mar, 0.3)


def test_each_mechanism_trains_on_its_own_cohort_and_is_tested_on_complete_people(
    recipe: Recipe, make_site: MakeSite
) -> None:
    label = np.tile([0.0, 1.0], 20)
    parts = []
    for split, first in (("probe", 100), ("test", 200)):
        levels = {(name, "liver"): 3 * sick for name, sick in zip(_people(first, 40), label.tolist(), strict=True)}
        folder = make_site(split, _people(first, 40), {"cat_liver": label}, split=split, levels=levels)
        parts.append(read_cohort([folder], recipe, split))
    store = PreparedStore.open(make_site("train", _people(0, 12), split="pretrain") / "store")
    seen: list[int] = []

    def train(thin: PreparedStore) -> Mapping[str, Tensor]:
        seen.append(len(thin.entries))
        return initial_parameters(recipe.model, recipe.organs, 1)

    found = cost_of_missingness(train, store, recipe, *parts, seed=3, rate=0.4, resamples=20)
    assert [row.mechanism for row in found] == list(Missingness)
    assert all(12 <= number < 36 for number in seen)
    for row in found:
        assert row.fitted_complete.shape == row.fitted_missing.shape == row.presence.shape == (21,)
        assert row.fitted_complete[0] > 0.9
        assert np.array_equal(row.fitted_complete, found[0].fitted_complete), (
            "one model, complete people: no difference"
        )
        assert row.presence[0] < 0.75
    assert any(not np.array_equal(row.fitted_missing, row.fitted_complete) for row in found)
