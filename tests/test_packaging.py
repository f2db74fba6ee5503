"""What leaves the house and what enters it: the wheel holds `panfm` only, Flower's bundle holds the two doors only, and
every package that an install resolves is pinned.

A hospital audits the wheel once and reads the bundle in an afternoon; a file more in either is code, or a secret, that
nobody looked at. Both are built here from a copy of the tree in which decoys were laid out.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import panfm

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("panfm", "client", "server", "simulation", "benchmarks", "deploy", "tests", ".ci")

DECOYS = (
    *("secret.key", "keys.json", "notes.md", "policy.yaml", "simulation/__main__.py", "deploy/site/runtime/guard.py"),
    *("client/site.key", "client/site.pem", "client/policy.yaml", "client/README.md", "client/cache.json"),
    *("server/coordinator.key", "server/study.yaml", "server/aggregation/notes.md", "server/scan.nii.gz"),
    *("panfm/site/site.key", "panfm/data/scan.nii", "panfm/data/scan.nii.gz", "panfm/data/ca.pem"),
)
"""Files that a careless day could leave in a checkout."""


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _names(archive: Path) -> set[str]:
    with zipfile.ZipFile(archive) as opened:
        return set(opened.namelist())


def _files(*folders: str) -> set[str]:
    """Every file below the folders of the checkout, compiled ones left out, by its path from the root."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def _python_files(*folders: str) -> set[str]:
    return {name for name in _files(*folders) if name.endswith(".py")}


def _run(*command: str | Path, cwd: Path) -> None:
    environment = os.environ | {"FLWR_HOME": str(cwd.parent / "flwr-home")}  # nothing goes to the person's home
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with decoys in it."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    for folder in ("panfm", "client", "server"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, copy / name)
    for name in DECOYS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("not for others\n", encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", checkout.parent / "wheel", cwd=checkout)
    (built,) = (checkout.parent / "wheel").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bundle(checkout: Path) -> Path:
    _run(Path(sys.executable).with_name("flwr"), "build", cwd=checkout)
    (built,) = checkout.glob("*.fab")
    return built


def test_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    assert {name for name in _names(wheel) if ".dist-info/" not in name} == _files("panfm")


def test_wheel_carries_the_recipes(wheel: Path) -> None:
    carried = {name for name in _names(wheel) if re.fullmatch(r"panfm/conf/.*\.yaml", name)}
    assert "panfm/conf/__init__.py" in _names(wheel), "without it Hydra does not find the folder"
    assert carried == {name for name in _files("panfm/conf") if name.endswith(".yaml")} != set()


def test_wheel_does_not_ask_for_flower(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        (metadata,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        lines = opened.read(metadata).decode().splitlines()
    required = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines if line.startswith("Requires-Dist")]
    plain = {item.name for item in required if item.marker is None or item.marker.evaluate({"extra": ""})}
    assert "torch" in plain
    assert "flwr" not in plain


def test_bundle_holds_the_two_doors_and_nothing_else(bundle: Path) -> None:
    added_by_flower = {"pyproject.toml", ".info/CONTENT"}
    assert _names(bundle) == _python_files("client", "server") | added_by_flower


def test_bundle_names_apps_that_are_in_it(bundle: Path) -> None:
    components = _pyproject()["tool"]["flwr"]["app"]["components"]
    paths = {reference.partition(":")[0].replace(".", "/") + ".py" for reference in components.values()}
    assert paths == {"client/app.py", "server/app.py"}
    assert paths <= _names(bundle)


def test_version_is_one() -> None:
    assert _pyproject()["project"]["version"] == panfm.__version__


# ---- what enters: every package pinned ----


def _constraints() -> dict[str, str]:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), "one name==version a line, no address, no marker"
    return {canonicalize_name(name): version for name, version in pairs}


def _asked_for() -> list[Requirement]:
    project = _pyproject()["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


def _reached(requirements: list[Requirement]) -> set[str]:
    """Names of all installed packages that the requirements lead to in this environment."""
    found: set[str] = set()
    waiting = [(item, extra) for item in requirements for extra in ("", *item.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        item, extra = waiting.pop()
        name = canonicalize_name(item.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        inner = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        needed = [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
        waiting += [(one, part) for one in needed for part in ("", *one.extras)]
    return found


def test_constraints_pin_what_the_study_relies_on() -> None:
    pinned = _constraints()
    assert pinned["torch"] == "2.13.0"
    assert pinned["flwr"] == "1.41.0"
    assert not [
        f"{name}=={version}" for name, version in pinned.items() if not re.fullmatch(r"[0-9][0-9a-z.]*", version)
    ]


def test_constraints_pin_everything_that_an_install_reaches() -> None:
    # torch brings and pins its own GPU libraries where its build has them; they differ from machine to machine.
    by_torch = re.compile(r"nvidia-.*|triton|cuda-.*")
    assert {name for name in _reached(_asked_for()) if not by_torch.fullmatch(name)} - _constraints().keys() == set()


def test_constraints_satisfy_what_pyproject_asks_for() -> None:
    pinned = _constraints()
    unmet = [str(item) for item in _asked_for() if not item.specifier.contains(pinned[canonicalize_name(item.name)])]
    assert unmet == []


# ---- how each file begins ----


def test_each_file_says_why_it_exists_and_under_which_licence() -> None:
    wanting = []
    for name in sorted(_python_files(*PACKAGES)):
        source = (ROOT / name).read_text(encoding="utf-8")
        if not ast.get_docstring(ast.parse(source)) or "\n# SPDX-License-Identifier: Apache-2.0\n" not in source:
            wanting.append(name)
    assert wanting == [], "begin each file with a docstring that says why it exists, and the SPDX line below it"
