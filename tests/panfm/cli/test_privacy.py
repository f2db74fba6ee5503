"""`panfm privacy plan`: the answers before a study, from numbers alone and from sites' statements."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm import recipes
from panfm.cli.main import app
from panfm.errors import ConfigError, PanfmError, RunError
from panfm.models.build import initial_parameters
from panfm.pretrain import private_audit
from panfm.privacy.accounting import Budget, NoisySteps
from panfm.privacy.one_run_audit import OneRunFound, OneRunPlan
from panfm.privacy.planning import noise_multiplier_for
from panfm.privacy.statement import BudgetStatement

BUDGET = ["--epsilon", "8", "--delta", "1e-5"]
STUDY = [*BUDGET, "--rounds", "40", "--steps", "25", "--rate", "0.05", "--denominator", "16"]


def _plan(*words: str, study: Sequence[str] = STUDY) -> Result:
    return CliRunner().invoke(app, ["privacy", "plan", *study, *words], env={"COLUMNS": "150"})


def _rows(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines() if line]


def test_plan_says_noise_signal_and_cost_by_round() -> None:
    result = _plan("--parameters", "450000")
    assert result.exit_code == 0
    assert "noise multiplier   1.252, the least" in result.stdout
    assert "0.0783 clip norms" in result.stdout
    assert "noise to signal    52.5" in result.stdout
    assert _rows(result)[-1] == ["40", "8.00", "7.36"]
    assert [row[0] for row in _rows(result)[-8:]] == ["1", "6", "12", "17", "23", "28", "34", "40"]


def test_plan_judges_a_given_noise() -> None:
    result = _plan("--noise", "1.0", "--rounds", "3", "--every-round", "--epsilon", "3")
    assert "1, as given: 1 of 3 rounds of 25 steps fit into epsilon 3" in result.stdout
    assert [row[0] for row in _rows(result)[-3:]] == ["1", "2", "3"]


RECIPE = ["recipe=smoke", "rounds=2", "privacy.sampling_rate=0.1", "privacy.denominator=4"]


def test_plan_takes_its_numbers_from_a_recipe() -> None:
    """Trained parameters by the words of the design: bottleneck adapters and predictors."""
    settings = [*RECIPE, "privacy.mode=dp_adapters", "privacy.noise_multiplier=1.5"]
    result = _plan(*settings, study=BUDGET)
    assert "1.5, as given: 2 rounds of 2 steps fit into epsilon 8" in result.stdout
    least = noise_multiplier_for(Budget(epsilon=8.0, delta=1e-5), 0.1, 4)
    assert f"the least for all  {least:g} (privacy.noise_multiplier={least:g})" in result.stdout
    composed = recipes.load(settings)
    parameters = initial_parameters(composed.model, composed.organs, 0)
    trained = [p.numel() for name, p in parameters.items() if ".adapters." in name or "_predictor." in name]
    assert f"over {sum(trained):,} parameters" in result.stdout
    by_hand = ["--rounds", "2", "--steps", "2", "--rate", "0.1", "--denominator", "4", "--noise", "1.5"]
    assert result.stdout == _plan(*by_hand, "--parameters", str(sum(trained)), study=BUDGET).stdout


def test_a_number_that_is_given_stands_before_the_recipes() -> None:
    result = _plan(*RECIPE, "privacy.mode=dp_full", "--rounds", "1", "--parameters", "0", study=BUDGET)
    assert "1 rounds of 2 steps fit" in result.stdout
    assert "noise to signal" not in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a plan needs --rounds, --steps, --rate, --denominator, or a recipe"),
        (["--rounds", "3", "--rate", "0.1"], "a plan needs --steps, --denominator, or a recipe"),
        (["recipe=smoke"], "the recipe has no privacy to plan; add privacy.mode="),
        (["recipe=smoke", "privacy.mod=dp_full"], "did you mean privacy.mode"),
        (["recipe=smoke", "privacy.mode=dp_full", "privacy.sampling_rate=2"], "privacy.sampling_rate must be"),
    ],
)
def test_a_plan_of_nothing_says_what_it_needs(words: list[str], said: str) -> None:
    result = _plan(*words, study=BUDGET)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)


def test_plan_says_which_sites_run_out_in_which_round(tmp_path: Path) -> None:
    budget = Budget(epsilon=8.0, delta=1e-5)
    spent = (NoisySteps(noise_multiplier=1.2524, sampling_rate=0.05, steps=975),)
    for site, history in (("south", spent), ("north", ())):
        statement = BudgetStatement(site=site, budget=budget, history=history)
        (tmp_path / f"{site}.json").write_text(statement.to_json())
    sites = [word for site in ("south", "north") for word in ("--site", str(tmp_path / f"{site}.json"))]
    result = _plan("--noise", "1.2524", "--rounds", "2", *sites)
    assert _rows(result)[-2] == ["north", "8", "at", "1e-05", "0.00", "2", "never"]
    assert _rows(result)[-1] == ["south", "8", "at", "1e-05", "7.88", "1", "in", "round", "2"]


@pytest.mark.parametrize(
    "words",
    [
        ("--epsilon", "0"),
        ("--delta", "0.5"),
        ("--rate", "1.5"),
        ("--denominator", "0"),
        ("--noise", "0"),
        ("--site", "/nowhere"),
    ],
)
def test_plan_that_protects_nobody_is_refused_in_one_line(words: tuple[str, str]) -> None:
    result = _plan(*words)
    assert isinstance(result.exception, ConfigError)
    assert issubclass(ConfigError, PanfmError)
    assert "\n" not in str(result.exception)


def _audit(*words: str) -> Result:
    return CliRunner().invoke(app, ["privacy", "audit", *words])


def test_audit_stands_beside_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    found = OneRunFound(claimed=2.81, at_least=0.62, signal=1.01, signal_band=0.11, noise=1.02, noise_band=0.03)
    monkeypatch.setattr(private_audit, "audit_recipe", lambda recipe, draws: (OneRunPlan(), found))
    result = _audit(*RECIPE, "privacy.mode=dp_full")
    assert result.exit_code == 0
    assert "dp_full: 1000 made-up subjects, 20 steps at rate 0.25, noise 2" in result.stdout
    assert "claimed    epsilon 2.81 at delta 1e-05" in result.stdout
    assert "shown      epsilon at least 0.62; wrong with chance 0.01" in result.stdout
    worse = replace(found, noise=0.5)
    monkeypatch.setattr(private_audit, "audit_recipe", lambda recipe, draws: (OneRunPlan(), worse))
    failed = _audit(*RECIPE, "privacy.mode=dp_full")
    assert isinstance(failed.exception, RunError)
    assert "the noise is 0.50 of what is charged" in str(failed.exception)


def test_audit_needs_privacy() -> None:
    assert isinstance(_audit("recipe=smoke").exception, ConfigError)
