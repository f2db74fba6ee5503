"""From words on a command line to checked settings, and through YAML and back; each mistake is one line that helps."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from panfm import recipes
from panfm.config import AugmentConfig, OrganMaskRule, Recipe, RunConfig, Sampler, Spacing
from panfm.errors import ConfigError


@pytest.fixture(scope="module")
def smoke() -> RunConfig:
    return recipes.load(["recipe=smoke"])


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_each_recipe_composes_and_survives_yaml(name: str) -> None:
    run = recipes.load([f"recipe={name}"])
    assert run.recipe == name
    assert run.organs
    assert recipes.run_from_yaml(recipes.to_yaml(run)) == run
    recipe = recipes.recipe_of(run)
    assert type(recipe) is Recipe
    assert recipes.recipe_from_yaml(recipes.to_yaml(recipe)) == recipe


def test_the_recipes_that_the_readme_names_are_there() -> None:
    assert {"demo", "public_start", "real", "smoke"} <= set(recipes.recipe_names())


def test_overrides_reach_their_settings() -> None:
    run = recipes.load(["rounds=9", "pretrain.organ_mask.rule=uniform", "model=small", "name='a, b'", "data=/tmp/x"])
    assert run.rounds == 9
    assert run.pretrain.organ_mask.rule is OrganMaskRule.uniform
    assert run.model.width == 384
    assert (run.name, run.data) == ("a, b", "/tmp/x")
    assert recipes.load([]).rounds != 9, "nothing stays from the last composition"


def test_an_organ_may_keep_its_native_spacing() -> None:
    """As the comment in `recipe/real.yaml` shows it; the word travels to the sites."""
    native = ["organs.heart.spacing=native", "organs.heart.shape=[96,48,96]"]
    run = recipes.load(["recipe=real", "data=scans", *native])
    assert {organ: grid.spacing for organ, grid in run.organs.items() if grid.spacing is not Spacing.resample} == {
        "heart": Spacing.native
    }
    recipe = recipes.recipe_of(run)
    assert "spacing: native" in recipes.to_yaml(recipe)
    assert recipes.recipe_from_yaml(recipes.to_yaml(recipe)) == recipe
    with pytest.raises(ConfigError, match="spacing"):
        recipes.load(["recipe=real", "organs.heart.spacing=natural"])


def test_augmentation_by_organ_composes_and_travels() -> None:
    """One organ's own values among those of all, on the command line and in the YAML that a site gets."""
    words = ["pretrain.augment.bias=0.2", "+pretrain.augment.organs={heart: {noise: 0.0, rotation_deg: 15}}"]
    recipe = recipes.recipe_of(recipes.load(["recipe=smoke", "pretrain.sampler=balanced", *words]))
    assert recipe.pretrain.sampler is Sampler.balanced
    heart, liver = (recipe.pretrain.augment.of(organ) for organ in ("heart", "liver"))
    assert (heart.noise, heart.rotation_deg, heart.bias) == (0.0, 15.0, 0.2)
    assert (liver.noise, liver.rotation_deg, liver.bias) == (AugmentConfig().noise, 0.0, 0.2)
    assert recipes.recipe_from_yaml(recipes.to_yaml(recipe)) == recipe
    with pytest.raises(ConfigError, match="the left of the heart"):
        recipes.load(["recipe=smoke", "pretrain.augment.flip=[0.5,0,0]"])


def test_a_recipe_is_read_by_name_or_from_its_file(tmp_path: Path, smoke: RunConfig) -> None:
    assert recipes.read_recipe("smoke") == recipes.recipe_of(smoke)
    (tmp_path / "study.yaml").write_text(recipes.to_yaml(recipes.recipe_of(smoke)))
    assert recipes.read_recipe(str(tmp_path / "study.yaml")) == recipes.recipe_of(smoke)
    with pytest.raises(ConfigError, match="no recipe is called 'smoek'"):
        recipes.read_recipe("smoek")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read .*; correct its path"):
        recipes.read_recipe(str(tmp_path / "nowhere.yaml"))


def test_yaml_says_what_hydras_own_writer_says(smoke: RunConfig) -> None:
    """An independent writer of the same settings."""
    assert yaml.safe_load(recipes.to_yaml(smoke)) == yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(smoke)))


@given(words=st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="$\x85\u2028\u2029\ufeff")))
@settings(max_examples=15)
def test_any_words_survive_yaml(words: str) -> None:
    run = replace(_PLAIN, name=words, data=words, recipe=words)
    assert recipes.run_from_yaml(recipes.to_yaml(run)) == run


_PLAIN = recipes.load(["recipe=smoke"])


def test_what_travels_to_a_site_names_no_place_of_ours(smoke: RunConfig) -> None:
    run = replace(smoke, name="our-name", runs="/our/runs", data="/our/data", init_from="/our/model")
    text = recipes.to_yaml(recipes.recipe_of(run))
    assert "our" not in text
    assert set(yaml.safe_load(text)) == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe=demoo", "no recipe is called 'demoo'; there are demo,"),
        ("recipe=", "no recipe is called ''; there are demo,"),
        ("model=hugee", "no model size is called 'hugee'; there are tiny, small, base and large"),
        ("roundz=5", "no setting is called roundz; did you mean rounds?"),
        ("pretrain.learning_rat=1", "did you mean pretrain.learning_rate?"),
        ("federation.min_site=1", "did you mean federation.min_sites?"),
        ("organs.liverr.shape=[8,8,8]", "no setting is called organs.liverr.shape"),
        ("+x=1", "no setting is called x"),
        ("rounds=abc", "'abc' of type 'str' could not be converted to Integer"),
        ("rounds=1.5", "could not be converted to Integer"),
        ("rounds=0", "rounds must be at least 1, got 0"),
        ("pretrain.organ_mask.rule=saliency", "expected one of [lift, threshold, uniform, none]"),
        ("engine=grpc", "expected one of [in_process, loopback, flower]"),
        ("cohort.kind=ct", "expected one of [synthetic, real]"),
        ("organs.brain.shape=[10,10,10]", "must be multiples of model.patch"),
        ("organs.brain.shape=5", "organs.brain.shape=5"),
        ("port=99999", "port must be in 0 to 65535"),
        ("rounds", "settings are written key=value"),
        ("--foo", "settings are written key=value, odd values key='value' with the quotes, got --foo"),
        ("data=/home/jörg", "odd values key='value'"),
        ("=5", "settings are written key=value"),
        ("rounds=5,6", "rounds"),
        ("organs=null", "organs"),
    ],
)
def test_mistake_on_the_command_line_is_one_line_that_helps(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.load([override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "should be a YAML mapping"),
        ("null", "should be a YAML mapping"),
        ("[1]", "should be a YAML mapping"),
        ("words", "should be a YAML mapping"),
        ("unknown: 1", "no setting is called unknown"),
        ("rounds: many", "could not be converted to Integer"),
        ("organs: {brain: 5}", "OrganGrid"),
        ("organs: {Brain: {}}", "organ name 'Brain'"),
        ("organs: {trunk: {}}", "organ name 'trunk'"),
        ("seed: -1", "seed must be"),
        ("seed: 2020-01-01", "cannot be read"),
        ("a: b: c", "cannot be read"),
        ("a: &a [*a]", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("recipe: ${oc.env:HOME}", "holds values only"),
        ('recipe: "\\x24{oc.env:HOME}"', "holds values only"),
        ("organs: {brain: {shape: ['${oc.env:UID}', 8, 8]}}", "holds values only"),
    ],
)
def test_recipe_that_came_from_elsewhere_is_refused_in_one_line(text: str, said: str) -> None:
    for read in (recipes.recipe_from_yaml, recipes.run_from_yaml):
        with pytest.raises(ConfigError) as caught:
            read(text)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_recipe_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe arrives inside a task: ${...} would let the coordinator look around at a hospital."""
    monkeypatch.setenv("SITE_SECRET", "31415")
    with pytest.raises(ConfigError) as caught:
        recipes.recipe_from_yaml("seed: ${oc.env:SITE_SECRET}")
    assert "31415" not in str(caught.value)


@given(st.text(max_size=60))
@settings(max_examples=50)
def test_any_text_is_a_recipe_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(recipes.recipe_from_yaml(text), Recipe)
