"""The threat model is true to the code at least in this: the files and the tests that it names exist."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "deploy" / "guides" / "threat_model.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:[\w.]+/)+[\w.]+(?:::\w+)?)`", TEXT)))


def test_something_is_named() -> None:
    assert len(NAMED) > 30
    assert sum("::" in name for name in NAMED) > 20


@pytest.mark.parametrize("name", NAMED)
def test_file_or_test_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).is_file()
    if test:
        tree = ast.parse((ROOT / path).read_text())
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_attack_that_is_tested_is_told_of() -> None:
    attacks = set()
    for path in sorted((ROOT / "tests" / "attacks").glob("test_*.py")):
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        attacks |= {f"tests/attacks/{path.name}::{name}" for name in names if name.startswith("test_")}
    assert attacks - set(NAMED) == set()
