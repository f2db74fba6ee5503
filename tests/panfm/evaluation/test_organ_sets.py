"""A subject through a set of organs is the subject who has no others."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from panfm.config import Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.store import PreparedStore
from panfm.evaluation.embedding import embed_subjects
from panfm.evaluation.organ_sets import all_sets, complete_subjects, embed_sets
from panfm.models.build import initial_parameters

ORGANS = ("brain", "liver", "spleen")


def test_each_set_gives_what_a_store_of_these_organs_alone_gives(
    recipe: Recipe, make_site: Callable[..., Path]
) -> None:
    people = {f"sub-{n:02d}": ORGANS if n % 3 else ORGANS[:2] for n in range(40)}
    store = PreparedStore.open(make_site("a", people) / "store")
    parameters = initial_parameters(recipe.model, recipe.organs, seed=1)
    dataset = SubjectDataset(store, ORGANS, recipe.organs)
    places = complete_subjects(dataset, ORGANS)
    assert places == [n for n in range(40) if n % 3]
    done: list[int] = []
    found = embed_sets(parameters, recipe, dataset, places, all_sets(ORGANS), on_subjects=done.append)
    assert sum(done) == len(places)
    for held, values in zip(found.sets, found.values, strict=True):
        alone = embed_subjects(parameters, recipe, SubjectDataset(store, held, recipe.organs))
        assert values == pytest.approx(_of(alone, held, people, places), abs=1e-5)


def _of(alone: object, held: tuple[str, ...], people: Mapping[str, tuple[str, ...]], places: list[int]) -> object:
    """Rows of the complete subjects in a dataset that holds those with any organ of the set."""
    rows = [name for name in people if set(people[name]) & set(held)]
    names = list(people)
    return alone[[rows.index(names[place]) for place in places]]  # type: ignore[index]  # an array, as approx takes any
