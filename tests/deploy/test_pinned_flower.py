"""The runtime starts with the one release of Flower that it was written against, and with no other."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from pathlib import Path

import pytest

from deploy import pinned_flower
from deploy.pinned_flower import CLIENTAPP, FLEET_CONNECTION, SOURCES, SUPEREXEC, SUPERNODE_LOOP, pinned
from deploy.site.runtime.guard import HOOKED
from panfm.errors import ConfigError


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (CLIENTAPP, ("run_clientapp", *HOOKED)),
        (SUPEREXEC, ("run_superexec", "get_executor", "make_simple_http_retry_invoker")),
        (FLEET_CONNECTION, ("http_request_response", "make_simple_http_retry_invoker")),
    ],
)
def test_hooked_names_are_there_and_are_what_the_program_calls(module: str, names: tuple[str, ...]) -> None:
    program, *hooked = names
    loaded = pinned(module, *names)
    called = {
        node.func.id
        for node in ast.walk(ast.parse(inspect.getsource(getattr(loaded, program))))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert set(hooked) <= called


def test_supernode_s_loop_pauses_by_the_name_that_is_hooked_and_knows_of_time_nothing_else() -> None:
    tree = ast.parse(inspect.getsource(pinned(SUPERNODE_LOOP)))
    of_time = [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time"
    ]
    assert of_time
    assert set(of_time) == {"sleep"}


def test_other_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.42.0")
    with pytest.raises(ConfigError, match=r"guards Flower 1\.41\.0 and no other: found Flower 1\.42\.0"):
        pinned(CLIENTAPP)


@pytest.mark.parametrize("module", SOURCES)
def test_other_source_under_the_same_version_is_refused(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: original(path) + b"\n")
    with pytest.raises(ConfigError, match="is not the release's"):
        pinned(module)


def test_missing_name_or_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no load_any_bundle"):
        pinned(CLIENTAPP, "load_any_bundle")
    monkeypatch.setitem(pinned_flower.SOURCES, "flwr.no_such_module", "0" * 64)
    with pytest.raises(ConfigError, match=r"it has no module flwr\.no_such_module"):
        pinned("flwr.no_such_module")
