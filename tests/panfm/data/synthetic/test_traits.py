"""The traits: unit variance, processes that act on several organs, and a ceiling that regression confirms."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import numpy as np
import pytest

import panfm.data.synthetic as cohort
from panfm.data.synthetic.factors import FACTORS, PROCESSES, draw_factors, reference_population, standardised
from panfm.data.synthetic.traits import TRAITS, draw_traits, linear_ceiling, loading_matrix, traits_of
from panfm.organs import SEVEN_ORGANS


def test_each_organ_has_traits_and_each_process_acts_on_several_organs() -> None:
    assert {trait.organ for trait in TRAITS} == set(SEVEN_ORGANS)
    for process in PROCESSES:
        assert len({trait.organ for trait in TRAITS if process in trait.loadings}) >= 3 or process == "proliferative"
        assert len({trait.organ for trait in TRAITS if process in trait.loadings}) >= 2


@pytest.mark.parametrize("organ", SEVEN_ORGANS)
def test_drawn_traits_have_unit_variance_and_the_stated_loadings(organ: str) -> None:
    people = [draw_factors(5, i) for i in range(1500)]
    drawn = np.array([list(draw_traits(5, i, organ, person).values()) for i, person in enumerate(people)])
    assert drawn.std(axis=0) == pytest.approx(np.ones(len(traits_of(organ))), abs=0.09)
    fitted = np.linalg.lstsq(np.array([person.values for person in people]), drawn)[0].T
    assert np.abs(fitted - loading_matrix([organ])[0]).max() < 0.12  # 4 standard errors at 1,500 subjects


def test_traits_of_an_organ_are_a_function_of_seed_index_and_organ() -> None:
    person = draw_factors(1, 2)
    assert draw_traits(1, 2, "liver", person) == draw_traits(1, 2, "liver", person)
    assert draw_traits(1, 2, "liver", person)["size"] != draw_traits(1, 3, "liver", person)["size"]


def test_ceiling_agrees_with_regression_on_simulated_traits() -> None:
    ages, factors = reference_population()
    loadings, own = loading_matrix(["brain", "liver"])
    noise = np.random.default_rng(0).standard_normal((len(ages), len(own)))
    traits = factors @ loadings.T + noise * np.sqrt(own)
    targets = np.column_stack([factors, standardised(ages)])
    left = targets - traits @ np.linalg.lstsq(traits, targets)[0]
    fitted = 1 - left.var(axis=0) / targets.var(axis=0)
    ceiling = linear_ceiling(["brain", "liver"])
    assert fitted == pytest.approx([ceiling[name] for name in (*FACTORS, "age")], abs=0.02)


def test_more_organs_never_tell_less() -> None:
    for count in range(1, len(SEVEN_ORGANS)):
        fewer, more = linear_ceiling(SEVEN_ORGANS[:count]), linear_ceiling(SEVEN_ORGANS[: count + 1])
        assert all(more[name] >= fewer[name] - 1e-12 for name in fewer)


def test_the_docstring_states_the_ceilings() -> None:
    lines = (cohort.__doc__ or "").splitlines()
    header = next(line.split() for line in lines if line.strip().startswith("organ "))
    for name, organs in [*((organ, (organ,)) for organ in SEVEN_ORGANS), ("all", SEVEN_ORGANS)]:
        stated = next(line.split() for line in lines if line.strip().startswith(f"{name} "))
        ceiling = linear_ceiling(organs)
        assert [float(value) for value in stated[1:]] == [
            pytest.approx(ceiling[factor], abs=0.0051) for factor in header[1:]
        ]
