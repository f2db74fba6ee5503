"""Several sites as one cohort: who has what, and what is known of whom."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.config import Recipe
from panfm.errors import DataError
from panfm.evaluation.cohort import embed_cohort, read_cohort
from panfm.models.build import initial_parameters


def test_sites_stand_one_after_the_other(recipe: Recipe, make_site: Callable[..., Path]) -> None:
    north = make_site("north", {"n1": ("brain",), "n2": ("brain", "spleen")}, {"sex": [1, 0], "age": [50, 60]})
    south = make_site("south", {"s1": ("spleen",)}, {"age": [70]})
    other = make_site("other", {"o1": ("brain",)}, {"age": [80]}, split="probe")
    found = read_cohort([north, other, south], recipe, "test")
    assert [part.site for part in found.parts] == ["north", "south"]
    assert found.organs == ("brain", "spleen"), "in the recipe's order, only what somebody has"
    assert np.array_equal(found.site_of, [0, 0, 1])
    assert np.array_equal(found.presence, [[1, 0], [1, 1], [0, 1]])
    assert np.array_equal(found.labels["age"], [50, 60, 70])
    assert np.array_equal(found.labels["sex"], [1, 0, np.nan], equal_nan=True)
    assert embed_cohort(initial_parameters(recipe.model, recipe.organs, 1), recipe, found).shape == (3, 48)


def test_what_cannot_be_evaluated_is_said(recipe: Recipe, make_site: Callable[..., Path]) -> None:
    folder = make_site("a", {"n1": ("brain",)})
    with pytest.raises(DataError, match="split 'probe'"):
        read_cohort([folder], recipe, "probe")
    with pytest.raises(DataError, match=r"labels\.csv"):
        read_cohort([folder], recipe, "test")
    with pytest.raises(DataError, match="comes twice"):
        read_cohort([folder, folder / ".." / "a"], recipe, "test")


def test_a_pseudonym_at_two_sites_is_two_people(recipe: Recipe, make_site: Callable[..., Path]) -> None:
    sites = [make_site(name, {"n1": ("brain",)}, {"age": [50]}) for name in ("north", "south")]
    north, south, both = (read_cohort(folders, recipe, "test").people for folders in (sites[:1], sites[1:], sites))
    assert not north & south
    assert both == north | south
