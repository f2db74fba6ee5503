"""Both modes hold to the contract on ragged subjects; trainers with one defect each, made from the same parts, do not.

Which question catches a defect is written down beside it, so that a question that no longer bites shows.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

from panfm.config import LossWeights, OrganMaskConfig, OrganMaskRule, PrivacyMode, Recipe
from panfm.errors import ConfigError
from panfm.pretrain.private_step import PrivateTraining, Views
from panfm.pretrain.private_trial import TrialTraining
from panfm.privacy.contract import QUESTIONS, Breach, Cohort, breaches
from panfm.randomness import stream
from tests.panfm.pretrain import broken_trainers as broken

MakeRecipe = Callable[..., Recipe]
T = TypeVar("T")


@pytest.fixture
def without_question_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the contract's own questions are seen to work, and to save time."""
    monkeypatch.setattr(PrivateTraining, "_refuse_coupling", lambda self, device: None)


DEFECTS: dict[type[broken.Broken], set[str]] = {
    broken.NoClipping: {"norm", "path", "sensitivity"},
    broken.BatchClipping: {"path", "neighbour"},
    broken.LayerClipping: {"norm", "path"},
    broken.AdaptiveClipping: {"neighbour"},
    broken.CropsOnBatch: {"unit", "norm"},
    broken.RowsOfOthers: {"row"},
    broken.ForgottenTerm: {"gradient"},
    broken.RealDenominator: {"path", "noise"},
    broken.BatchCentre: {"neighbour"},
    broken.EmaCentre: {"state"},
    broken.BatchSgm: {"neighbour"},
    broken.SgmMemory: {"state"},
    broken.GlobalMaskCount: {"neighbour"},
    broken.MeanOverValid: {"neighbour"},
    broken.Koleo: {"neighbour"},
    broken.BatchNormHead: {"neighbour"},
    broken.SharedMaskDraws: {"neighbour"},
    broken.NoiseWithoutClip: {"noise"},
    broken.LessNoise: {"noise"},
    broken.NoNoiseOnAbsent: {"noise"},
    broken.NoNoiseForNobody: {"noise"},
    broken.NoisePerPart: {"noise"},
    broken.SeededNoise: {"freshness"},
    broken.GlobalNoise: {"freshness"},
    broken.RawMetric: {"metrics"},
    broken.RawStep: {"state"},
}
"""Each defect, and questions that must find it; others may find it, too."""


def small(make_recipe: MakeRecipe) -> Recipe:
    """As small as a pan-organ model gets: the questions are the same."""
    recipe = make_recipe(organ_mask=OrganMaskConfig(rate=0.5))
    recipe.organs = {organ: replace(grid) for organ, grid in recipe.organs.items()}
    recipe.model = replace(recipe.model, width=12, depth=1, heads=2, predictor_width=8, adapter_width=2)
    return recipe


def asked(
    kind: type[TrialTraining],
    recipe: Recipe,
    mode: PrivacyMode,
    questions: Collection[str] = QUESTIONS,
    remembers: bool = True,
) -> tuple[Breach, ...]:
    """The questions that are answered wrongly.

    Args:
        remembers: the gradients of a sample that is released again, only to see its noise again, are not computed again.
    """
    shapes = {organ: tuple(grid.shape) for organ, grid in recipe.organs.items()}

    def make(clip: float, noise: float) -> TrialTraining:
        trainer = kind(recipe, mode, clip, noise)
        trainer.remembers = remembers
        return trainer

    return breaches(make, shapes, questions)


MODES = (PrivacyMode.dp_full, PrivacyMode.dp_adapters)
RULES = [
    OrganMaskRule.lift,
    *(pytest.param(rule, marks=pytest.mark.slow) for rule in OrganMaskRule if rule is not OrganMaskRule.lift),
]
TERMS = {
    "hidden patches": LossWeights(patch=1, seen=0, organ=0),
    "seen patches": LossWeights(patch=0, seen=1, organ=0),
    "organs": LossWeights(patch=0, seen=0, organ=1),
}
"""Each term of the objective by itself; the others leave parameters that are then not trained."""


def _mostly_slow(cases: Iterable[T], *fast: tuple[T, PrivacyMode]) -> list[ParameterSet]:
    """Each case in both modes; all but some of them among the slow tests."""
    pairs = [(case, mode) for case in cases for mode in MODES]
    return [pytest.param(*pair, marks=[] if pair in fast else pytest.mark.slow) for pair in pairs]


class TwoViews(TrialTraining):
    """Production, each subject seen twice under other masks: one gradient all the same."""

    def views(self, cohort: Cohort) -> list[Views]:
        first = super().views(cohort)[0]
        organs, patches = ([stream(8, name, what) for name in first.given.subjects] for what in ("organs", "patches"))
        return [first, replace(first, organ_draws=organs, patch_draws=patches)]


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", RULES)
def test_production_holds_to_the_contract(make_recipe: MakeRecipe, mode: PrivacyMode, rule: OrganMaskRule) -> None:
    """By the default rule nothing is remembered, as in production."""
    recipe = small(make_recipe)
    recipe.pretrain.organ_mask = OrganMaskConfig(rule=rule, rate=0.5)
    assert asked(TrialTraining, recipe, mode, remembers=rule is not OrganMaskRule.lift) == ()


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize(
    ("term", "mode"),
    _mostly_slow(TERMS, ("hidden patches", PrivacyMode.dp_full), ("organs", PrivacyMode.dp_adapters)),
)
def test_each_term_of_the_objective_holds(make_recipe: MakeRecipe, term: str, mode: PrivacyMode) -> None:
    recipe = small(make_recipe)
    recipe.pretrain.loss = TERMS[term]
    assert asked(TrialTraining, recipe, mode) == ()


@pytest.mark.usefixtures("without_question_at_start")
def test_several_views_of_a_subject_are_one_row(make_recipe: MakeRecipe) -> None:
    assert asked(TwoViews, small(make_recipe), PrivacyMode.dp_adapters) == ()


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize(
    ("organs", "mode"),
    _mostly_slow(
        [("heart",), ("brain", "liver")],
        (("heart",), PrivacyMode.dp_full),
        (("brain", "liver"), PrivacyMode.dp_adapters),
    ),
)
def test_sites_of_fewer_organs_hold(make_recipe: MakeRecipe, organs: tuple[str, ...], mode: PrivacyMode) -> None:
    recipe = small(make_recipe)
    recipe.organs = {organ: recipe.organs[organ] for organ in organs}
    assert asked(TrialTraining, recipe, mode) == ()


def test_defects_are_many() -> None:
    """At least fifteen, each of them in the table."""
    assert set(DEFECTS) == set(broken.Broken.__subclasses__())
    assert len(DEFECTS) >= 15


@pytest.mark.usefixtures("without_question_at_start")
@pytest.mark.parametrize("defect", list(DEFECTS), ids=lambda kind: str(kind.__name__))
def test_each_defect_is_caught(make_recipe: MakeRecipe, defect: type[broken.Broken]) -> None:
    found = asked(defect, small(make_recipe), PrivacyMode.dp_adapters, DEFECTS[defect])
    assert {breach.question for breach in found} == DEFECTS[defect]


@pytest.mark.parametrize(
    "defect", [broken.BatchCentre, broken.BatchNormHead, broken.Koleo, broken.MeanOverValid, broken.GlobalMaskCount]
)
def test_coupled_objective_is_refused_at_the_start(make_recipe: MakeRecipe, defect: type[broken.Broken]) -> None:
    with pytest.raises(ConfigError, match="couples subjects"):
        defect(small(make_recipe), PrivacyMode.dp_adapters, 1.0, 1.0)
