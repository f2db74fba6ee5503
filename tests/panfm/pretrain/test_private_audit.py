"""Both audits on the production trainer, which passes, and on those broken trainers that an audit can see.

Which those are is written down, and those that only the contract sees are, too: an audit that finds nothing is no proof.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from panfm.config import LossWeights, OrganMaskConfig, PrivacyConfig, PrivacyMode, Recipe
from panfm.errors import ConfigError
from panfm.pretrain import private_audit
from panfm.pretrain.private_audit import audit_recipe, smallest
from panfm.pretrain.private_step import PrivateTraining
from panfm.pretrain.private_trial import TrialTraining
from panfm.privacy.accounting import NoisySteps
from panfm.privacy.contract import SILENT, MadeUp, Trainer, made_up_cohort
from panfm.privacy.one_run_audit import CANARY_NORM, Canaries, Coordinate, OneRunFound, OneRunPlan, one_run_audit
from panfm.privacy.step_audit import StepFound, StepPlan, step_audit
from tests.panfm.pretrain import broken_trainers as broken

MakeRecipe = Callable[..., Recipe]
Kind = type[TrialTraining]
ORGANS = ("brain", "heart", "liver")
MODES = (PrivacyMode.dp_adapters, PrivacyMode.dp_full)


@pytest.fixture(autouse=True)
def _without_question_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an audit sees for itself what would be refused, and to save time."""
    monkeypatch.setattr(PrivateTraining, "_refuse_coupling", lambda self, device: None)


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    """The smallest model with more than a thousand adapted parameters; weights that take gradients above the clip norm."""
    made = make_recipe(organ_mask=OrganMaskConfig(rate=0.5), loss=LossWeights(patch=20, seen=10, organ=10))
    made.model = replace(made.model, width=12, depth=1, heads=2, predictor_width=24, adapter_width=2)
    return made


def shapes_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    return {organ: tuple(grid.shape) for organ, grid in recipe.organs.items()}


def one_run(kind: Kind, recipe: Recipe, mode: PrivacyMode) -> OneRunFound:
    def make(clip_norm: float, noise: float, canaries: Canaries) -> Trainer:
        trainer = kind(recipe, mode, clip_norm, noise, canaries)
        trainer.most = 64
        return trainer

    return one_run_audit(make, made_up_cohort(shapes_of(recipe)), np.random.default_rng(0))


def step(kind: Kind, recipe: Recipe, mode: PrivacyMode, releases: int = 1000) -> StepFound:
    def make(clip_norm: float, noise: float) -> Trainer:
        trainer = kind(recipe, mode, clip_norm, noise)
        trainer.most, trainer.remembers = 64, True
        return trainer

    return step_audit(make, shapes_of(recipe), StepPlan(releases=releases))


ONE_RUN_SEES: dict[type[broken.Broken], str] = {
    broken.NoClipping: "bound",
    broken.BatchClipping: "signal",
    broken.CropsOnBatch: "signal",
    broken.RealDenominator: "noise",
    broken.NoiseWithoutClip: "noise",
    broken.LessNoise: "noise",
    broken.NoisePerPart: "noise",
    broken.SeededNoise: "noise",
}
"""What one run shows, and by which figure."""
STEP_SEES = (broken.NoClipping, broken.CropsOnBatch, broken.NoiseWithoutClip, broken.LessNoise)
"""What repeated releases show."""
LEFT_TO_THE_CONTRACT = (
    broken.LayerClipping,  # a canary lies in one parameter
    broken.AdaptiveClipping,
    broken.RowsOfOthers,
    broken.ForgottenTerm,
    broken.BatchCentre,
    broken.EmaCentre,
    broken.BatchSgm,
    broken.SgmMemory,
    broken.GlobalMaskCount,
    broken.MeanOverValid,
    broken.Koleo,
    broken.BatchNormHead,
    broken.SharedMaskDraws,
    broken.NoNoiseOnAbsent,
    broken.NoNoiseForNobody,
    broken.GlobalNoise,
    broken.RawMetric,
    broken.RawStep,
)
"""What no audit is relied on for; with other subjects, or by chance, one may see some of them."""


def test_each_defect_of_the_contract_is_spoken_of() -> None:
    seen = {*ONE_RUN_SEES, *STEP_SEES}
    assert seen.isdisjoint(LEFT_TO_THE_CONTRACT)
    assert seen.union(LEFT_TO_THE_CONTRACT) == set(broken.Broken.__subclasses__())


def test_canary_is_one_coordinate_of_one_subject(recipe: Recipe) -> None:
    """Clipped like anybody, beside rows that are what they were."""
    cohort, mode = [*made_up_cohort(shapes_of(recipe))[:1], MadeUp("s1", {})], PrivacyMode.dp_full
    plain = TrialTraining(recipe, mode, 2.0, SILENT).subject_gradients(cohort)
    name = next(name for name in plain if name.endswith("bias"))
    canary = {"s1": Coordinate(name, 3)}
    believed = TrialTraining(recipe, mode, 2.0, SILENT, canary)
    rows = believed.subject_gradients(cohort)
    expected = {own: rows_of.clone() for own, rows_of in plain.items()}
    expected[name][1, 3] = 2.0 * CANARY_NORM
    assert all(torch.equal(rows[own], expected[own]) for own in plain)
    alone = believed.release(cohort[1:])[name][3] * believed.denominator
    assert float(alone) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_production_passes_in_one_run(recipe: Recipe, mode: PrivacyMode) -> None:
    found = one_run(TrialTraining, recipe, mode)
    assert found.breaches() == ()
    assert found.at_least < found.claimed < 3


@pytest.mark.parametrize(
    "defect",
    [
        kind if kind in (broken.NoClipping, broken.LessNoise) else pytest.param(kind, marks=pytest.mark.slow)
        for kind in ONE_RUN_SEES
    ],
)
def test_one_run_sees(recipe: Recipe, defect: type[broken.Broken]) -> None:
    found = one_run(defect, recipe, PrivacyMode.dp_adapters)
    assert ONE_RUN_SEES[defect] in {breach.question for breach in found.breaches()}


def test_production_passes_by_its_releases(recipe: Recipe) -> None:
    """Few releases; a bound is a bound for any number."""
    found = step(TrialTraining, recipe, PrivacyMode.dp_adapters, releases=250)
    assert found.breaches() == ()
    assert found.mu_at_least > 0.2


def test_releases_show_that_nothing_is_clipped(recipe: Recipe) -> None:
    found = step(broken.NoClipping, recipe, PrivacyMode.dp_adapters, releases=250)
    assert "mu" in {breach.question for breach in found.breaches()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_production_passes_by_a_thousand_releases(recipe: Recipe, mode: PrivacyMode) -> None:
    found = step(TrialTraining, recipe, mode)
    assert found.breaches() == ()
    assert found.mu_at_least > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("defect", STEP_SEES)
def test_releases_show(recipe: Recipe, defect: type[broken.Broken]) -> None:
    found = step(defect, recipe, PrivacyMode.dp_adapters)
    assert "mu" in {breach.question for breach in found.breaches()}


@pytest.mark.parametrize("organs", [("heart",), ORGANS])
def test_trainer_of_a_recipe_is_audited_in_small(make_recipe: MakeRecipe, organs: tuple[str, ...]) -> None:
    """Of whatever size its own model is; with fewer canaries here, to save time."""
    recipe = make_recipe()
    recipe.organs = {organ: recipe.organs[organ] for organ in organs}
    recipe.privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters)
    few = OneRunPlan(num_canaries=200)
    plan, found = audit_recipe(recipe, np.random.default_rng(0), few)
    assert plan == few
    assert found.breaches() == ()
    assert found.at_least < found.claimed < 3


def test_audit_of_a_recipe_sees_a_defect(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_audit, "TrialTraining", broken.NoiseWithoutClip)
    recipe = make_recipe()
    recipe.privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters)
    _, found = audit_recipe(recipe, np.random.default_rng(0), OneRunPlan(num_canaries=200))
    assert {breach.question for breach in found.breaches()} == {"noise"}


def test_no_more_canaries_than_numbers_and_no_audit_without_privacy(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    with pytest.raises(ConfigError, match=r"privacy\.mode is none"):
        audit_recipe(recipe, np.random.default_rng(0))
    recipe.privacy = PrivacyConfig(mode=PrivacyMode.dp_adapters)
    trained = TrialTraining(smallest(recipe), PrivacyMode.dp_adapters, 1.0, 1.0).training.trained
    greedy = OneRunPlan(num_canaries=10**6, steps=NoisySteps(noise_multiplier=2.0, sampling_rate=0.01, steps=1))
    plan, _ = audit_recipe(recipe, np.random.default_rng(0), greedy)
    assert plan.num_canaries == sum(parameter.numel() for parameter in trained.values()) > OneRunPlan().num_canaries
