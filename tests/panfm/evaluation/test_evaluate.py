"""A whole evaluation of a cohort whose truth is planted: the label shows in the liver and nowhere else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from panfm.config import Recipe
from panfm.evaluation.cohort import Cohort, read_cohort
from panfm.evaluation.evaluate import FEWEST_FITTED, LINEAR, NEAREST, PRESENCE, Evaluation, Plan, evaluate
from panfm.evaluation.organ_sets import all_sets
from panfm.evaluation.result_rows import Row, contribution_rows, robustness_rows, set_rows, sweep_rows
from panfm.evaluation.sweep import sweep_values
from panfm.models.build import initial_parameters

ORGANS = ("brain", "liver", "spleen")
PLAN = Plan(resamples=50, dominant=("liver",), refit=True)
MakeSite = Callable[..., Path]


def _cohort(make_site: MakeSite, recipe: Recipe, split: str, sites: dict[str, int]) -> Cohort:
    """Ill people's livers are brighter; at each site every fifth subject has a brain alone."""
    folders = []
    for site, number in sites.items():
        names = [f"{site}-{n:02d}" for n in range(number)]
        ill = np.random.default_rng(list(site.encode())).permutation(number) % 2
        held = {name: ORGANS if place % 5 else ORGANS[:1] for place, name in enumerate(names)}
        levels = {(name, "liver"): 3.0 * sick for name, sick in zip(names, ill.tolist(), strict=True)}
        labels = {"cat_liver": ill.tolist(), "cat_nothing": (np.arange(number) // 2 % 2).tolist(), "age": range(number)}
        folders.append(make_site(f"{split}-{site}", held, labels, split=split, levels=levels))
    return read_cohort(folders, recipe, split)


@pytest.fixture(scope="module")
def found(recipe: Recipe, make_site: MakeSite) -> Evaluation:
    fit = _cohort(make_site, recipe, "probe", {"f": 80})
    test = _cohort(make_site, recipe, "test", {"a": 40, "b": 40})
    return evaluate(initial_parameters(recipe.model, recipe.organs, 1), recipe, fit, test, PLAN)


def _one(rows: list[Row], **wanted: object) -> Row:
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def test_probes_read_what_shows_and_not_what_does_not(found: Evaluation) -> None:
    assert (found.num_fit, found.num_test, found.num_swept) == (80, 80, 64)
    for probe in (LINEAR, NEAREST):
        shown = _one(found.scores, probe=probe, target="cat_liver", metric="AUROC")
        assert shown["low"] > 0.75
        hidden = _one(found.scores, probe=probe, target="cat_nothing", metric="AUROC")
        assert hidden["low"] < 0.6
    precision = _one(found.scores, probe=LINEAR, target="cat_liver", metric="AUPRC")
    assert precision["chance"] == 0.5
    assert precision["positives"] == 40
    assert _one(found.scores, probe=LINEAR, target="age", metric="R2")["value"] < 0.3


def test_presence_alone_says_nothing_of_what_is_missing_at_random(found: Evaluation) -> None:
    row = _one(found.scores, probe=PRESENCE, target="cat_liver", metric="AUROC")
    assert row["low"] < 0.5 < row["high"] or row["value"] == 0.5


@pytest.mark.parametrize("probe", ["fitted once", "fitted for each set"])
def test_the_sweep_finds_the_organ_that_counts(found: Evaluation, probe: str) -> None:
    same = {"probe": probe, "target": "2 disease categories"}
    for row in (row for row in found.organ_sets if row["probe"] == probe):
        assert (row["value"] > 0.65) == ("liver" in row["organs"]), row
    assert [_one(found.sweep, **same, missing=k)["sets"] for k in range(3)] == [1, 3, 3]
    assert "liver" not in _one(found.sweep, **same, missing=1)["worst_set"]
    lost = _one(found.robustness, **same, quantity="lost without liver")
    assert lost["low"] > 0.1
    complete = _one(found.robustness, **same, quantity="complete")["value"]
    assert _one(found.robustness, **same, quantity="without liver")["value"] == pytest.approx(complete - lost["value"])
    worst = _one(found.robustness, **same, quantity="worst set")
    assert worst["value"] == min(row["value"] for row in found.organ_sets if row["probe"] == probe)


@pytest.mark.parametrize("probe", ["fitted once", "fitted for each set"])
def test_contributions_name_it_and_sum_to_the_score(found: Evaluation, probe: str) -> None:
    rows = [row for row in found.contributions if row["probe"] == probe]
    shapley = {row["organ"]: row["shapley"] for row in rows if row["organ"] in ORGANS}
    assert max(shapley, key=lambda organ: shapley[organ]) == "liver"
    complete = _one(found.robustness, probe=probe, target="2 disease categories", quantity="complete")["value"]
    assert sum(shapley.values()) == pytest.approx(complete - 0.5)
    liver = _one(rows, organ="liver")
    assert liver["alone"] > 0.65
    assert liver["lost_without"] > 0.1
    assert _one(rows, organ="evenness")["shapley"] < 0.7


def test_attention_and_sites_are_told(found: Evaluation) -> None:
    assert [row["organ"] for row in found.attention] == [*ORGANS, "evenness of shares"]
    assert sum(row["share"] for row in found.attention[:-1]) == pytest.approx(1)
    for row in found.attention[:-1]:
        assert row["drop"] == pytest.approx(row["share"] - row["noise_share"])
    names = [row["site"] for row in found.sites]
    assert names[:2] == ["test-a", "test-b"]
    assert names[2] in ("mean minus test-a", "mean minus test-b")
    values = [row["value"] for row in found.sites[:2]]
    assert found.sites[2]["value"] == pytest.approx(np.mean(values) - min(values))


def test_two_models_on_one_cohort_are_compared_in_pairs(recipe: Recipe, make_site: MakeSite, found: Evaluation) -> None:
    fit = _cohort(make_site, recipe, "probe", {"f": 80})
    test = _cohort(make_site, recipe, "test", {"a": 40, "b": 40})
    again = evaluate(initial_parameters(recipe.model, recipe.organs, 1), recipe, fit, test, PLAN)
    assert found.resampled.keys() == {(p, "2 disease categories") for p in ("fitted once", "fitted for each set")}
    for key, sweep in found.resampled.items():
        assert sweep.values.shape == (7, 51)
        assert np.array_equal(sweep.values, again.resampled[key].values), (
            "the same model differs from itself by nothing"
        )


def test_it_can_be_written_as_json(found: Evaluation) -> None:
    json.dumps(found.tables(), allow_nan=False)


def test_what_could_not_be_asked_is_said(recipe: Recipe, make_site: MakeSite) -> None:
    fit = _cohort(make_site, recipe, "probe", {"f": FEWEST_FITTED})
    parameters = initial_parameters(recipe.model, recipe.organs, 1)
    few = evaluate(parameters, recipe, fit, _cohort(make_site, recipe, "test", {"a": 20}), PLAN)
    assert any(f"needs {FEWEST_FITTED} fit subjects with all organs, got 16" in note for note in few.notes)
    assert {row["probe"] for row in few.sweep} == {"fitted once"}

    names = [f"b-{n:02d}" for n in range(20)]
    ragged = {name: (ORGANS[place % 3],) for place, name in enumerate(names)}
    folder = make_site("ragged", ragged, {"cat_liver": [0, 1] * 10, "dx_rare": [1] + [0] * 19})
    none = evaluate(parameters, recipe, fit, read_cohort([folder], recipe, "test"), PLAN)
    assert none.num_swept == 0
    assert none.scores
    assert not none.sweep
    assert any("no sweep" in note for note in none.notes)
    assert any("dx_rare" in note for note in none.notes)


def test_fewer_subjects_may_be_swept(recipe: Recipe, make_site: MakeSite) -> None:
    fit = _cohort(make_site, recipe, "probe", {"f": 20})
    test = _cohort(make_site, recipe, "test", {"a": 20, "b": 20})
    parameters = initial_parameters(recipe.model, recipe.organs, 1)
    found = evaluate(parameters, recipe, fit, test, Plan(resamples=5, sweep_subjects=12))
    assert found.num_swept == 12
    assert found.sweep[0]["sets"] == 1


def test_a_sweep_of_people_who_are_all_alike_has_gaps_and_is_still_json() -> None:
    sets = all_sets(ORGANS)
    sweep = sweep_values(sets, np.zeros((7, 1, 9)), np.ones((1, 9)), np.ones((4, 9)))
    rows = [*sweep_rows(sweep), *contribution_rows(sweep), *robustness_rows(sweep, ("liver",)), *set_rows(sweep)]
    assert sweep_rows(sweep)[0]["mean"] is None
    json.dumps(rows, allow_nan=False)
