"""The Hydra edge: a recipe's name and overrides in, one checked `RunConfig` out.

Hydra composes once, here, in our own command. What was composed travels as one YAML string: the whole `RunConfig` to the
coordinator's program, and the `Recipe` part of it to each site inside a signed task. Everything else in panfm takes plain
values and never sees Hydra.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, fields
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from panfm.config import Recipe, RunConfig
from panfm.errors import ConfigError

R = TypeVar("R", Recipe, RunConfig)
_CONFIG_MODULE = "panfm.conf"
_SCHEMAS: dict[type[Recipe], Any] = {schema: OmegaConf.structured(schema) for schema in (Recipe, RunConfig)}
"""Built once, for every task of every round is read by one; merging leaves them unchanged."""


def load(overrides: Sequence[str]) -> RunConfig:
    """Compose a run from `key=value` overrides, such as `recipe=demo rounds=5 pretrain.organ_mask.rule=uniform`.

    Raises: ConfigError, in one line, when a recipe, a key or a value is not known.
    """
    ConfigStore.instance().store(name="run_schema", node=RunConfig)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(_CONFIG_MODULE, version_base="1.3"):
            return _checked(compose("run", overrides=list(overrides)), RunConfig)
    except (HydraException, OmegaConfBaseException, AttributeError, ValueError) as error:
        raise ConfigError(_explain(error)) from error


def to_yaml(settings: Recipe | RunConfig) -> str:
    """The settings as YAML, every value spelt out."""
    return yaml.safe_dump(_plain(asdict(settings)), sort_keys=False, allow_unicode=True)


def digest(recipe: Recipe) -> str:
    """SHA-256 (hex) over every value of the recipe: what a site approves, and what another version of panfm may not have."""
    return hashlib.sha256(to_yaml(recipe).encode()).hexdigest()


def run_from_yaml(text: str) -> RunConfig:
    """The run that `to_yaml` wrote. Raises: ConfigError."""
    return _from_yaml(text, RunConfig)


def recipe_from_yaml(text: str) -> Recipe:
    """The recipe that `to_yaml` wrote. Raises: ConfigError."""
    return _from_yaml(text, Recipe)


def read_recipe(name: str) -> Recipe:
    """A recipe that comes with panfm, by its name, or a study's own, by its file (`.yaml`).

    Raises: ConfigError when there is none, or the file is no recipe.
    """
    if not name.endswith((".yaml", ".yml")):
        return recipe_of(load([f"recipe={name}"]))
    try:
        return recipe_from_yaml(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {name} cannot be read ({error}); correct its path") from error


def recipe_of(run: RunConfig) -> Recipe:
    """Only what the sites of a study agree on: no path, no name, nothing of the rehearsal."""
    return Recipe(**{f.name: getattr(run, f.name) for f in fields(Recipe)})


def recipe_names() -> list[str]:
    """Names of the recipes that come with panfm."""
    GlobalHydra.instance().clear()
    with initialize_config_module(_CONFIG_MODULE, version_base="1.3"):
        return list(GlobalHydra.instance().config_loader().get_group_options("recipe"))


def _from_yaml(text: str, schema: type[R]) -> R:
    """A copy of its own for each who reads, for settings can be changed."""
    settings = deepcopy(_parsed(text, issubclass(schema, RunConfig)))
    assert isinstance(settings, schema)
    return settings


@lru_cache(
    maxsize=4
)  # a rehearsal's hundred hospitals read the same recipe, which takes longer than a small training step
def _parsed(text: str, with_run: bool) -> Recipe:
    schema = RunConfig if with_run else Recipe
    try:
        values = yaml.safe_load(text)
        if not isinstance(values, dict):
            raise ConfigError("a recipe should be a YAML mapping of settings; check the file")
        # ${oc.env:...} in a recipe that was sent here would read the environment of whoever reads it.
        if "${" in json.dumps(values, default=str):
            raise ConfigError("a recipe holds values only, and this one holds ${...}; spell its values out")
        return _checked(OmegaConf.merge(_SCHEMAS[schema], values), schema)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"the recipe cannot be read: {_explain(error)}") from error


def _plain(value: Any) -> Any:
    """Enums by the word that YAML has for them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.name if isinstance(value, Enum) else value


def _checked(values: object, schema: type[R]) -> R:
    settings = OmegaConf.to_object(values)
    assert isinstance(settings, schema)
    return settings


def _explain(error: Exception) -> str:
    """Hydra's or OmegaConf's words in one line, with the nearest name that exists where a name was mistyped."""
    message = " ".join(str(part) for part in (error, error.__cause__) if part is not None)
    if match := re.search(r"Could not find 'recipe/([^']*)'", message):
        return f"no recipe is called {match.group(1)!r}; there are {', '.join(recipe_names())}"
    if match := re.search(r"Could not find 'model/([^']+)'", message):
        return f"no model size is called {match.group(1)!r}; there are tiny, small, base and large"
    unknown = r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in|object has no attribute '([^']+)'"
    if match := re.search(unknown, message):
        return _unknown_setting(next(filter(None, match.groups())))
    if match := re.search(r"LexerNoViableAltException: (.*)|missing EQUAL at|Config group override must be", message):
        given = f", got {match.group(1)}" if match.group(1) else ""
        return f"settings are written key=value, odd values key='value' with the quotes{given}; see `panfm simulate --help`"
    words = " ".join(re.split(r"\s+full_key|\s+See https|\s+Set the environment", message)[0].split())
    return f"{words.rstrip('.')}; `panfm simulate --help` shows how settings are written"


def _unknown_setting(path: str) -> str:
    known = _setting_paths(RunConfig())
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else "`panfm simulate --help` lists the settings"
    return f"no setting is called {path}; {hint}"


def _setting_paths(run: RunConfig) -> list[str]:
    """Dotted paths of all settings."""

    def walk(node: object, path: str) -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [found for key, value in node.items() for found in walk(value, f"{path}.{key}" if path else str(key))]

    return walk(OmegaConf.to_container(OmegaConf.structured(run)), "")
