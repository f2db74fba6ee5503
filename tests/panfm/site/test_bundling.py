"""The same sources give the same bundle, byte for byte, and it is the one that Flower itself would send."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from panfm.errors import ConfigError
from panfm.site import bundling
from panfm.site.bundles import FLOWER_VERSION
from panfm.site.bundling import build_bundle

ROOT = Path(__file__).resolve().parents[3]


def _copy(place: Path, *, mode: int, mtime: int, backwards: bool) -> Path:
    """The files that travel and some that do not, written in one order or the other."""
    names = ["pyproject.toml", ".gitignore", "README.md"]
    names += [
        path.relative_to(ROOT).as_posix() for room in ("client", "server") for path in (ROOT / room).rglob("*.py")
    ]
    for name in sorted(names, reverse=backwards):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)
        (place / name).chmod(mode)
        os.utime(place / name, (mtime, mtime))
    return place


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_two_builds_of_the_same_sources_are_the_same_bytes(tmp_path: Path, umask: None) -> None:
    first = build_bundle(_copy(tmp_path / "one", mode=0o644, mtime=1_000_000_000, backwards=False))
    os.umask(0o002)
    other = _copy(tmp_path / "a name that Flower would refuse", mode=0o755, mtime=1_700_000_000, backwards=True)
    (other / "client" / "__pycache__").mkdir()
    (other / "client" / "__pycache__" / "app.cpython-311.pyc").write_bytes(b"not for others")
    assert build_bundle(other).content == first.content

    (other / "client" / "app.py").write_text("app = None\n")
    assert build_bundle(other).digest != first.digest


def test_bundle_is_the_one_that_flower_builds(tmp_path: Path) -> None:
    tree = _copy(tmp_path / "checkout", mode=0o644, mtime=1_000_000_000, backwards=False)
    environment = os.environ | {"FLWR_HOME": str(tmp_path / "home")}
    flwr = Path(sys.executable).with_name("flwr")
    subprocess.run([flwr, "build"], cwd=tree, env=environment, check=True, capture_output=True)
    (built,) = tree.glob("*.fab")
    assert build_bundle(tree).content == built.read_bytes()


def test_pinned_release_is_the_one_that_is_installed() -> None:
    assert importlib.metadata.version("flwr") == FLOWER_VERSION
    assert f"flwr=={FLOWER_VERSION}\n" in (ROOT / "constraints.txt").read_text()


def test_other_release_builds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "FLOWER_VERSION", "9.9.9")
    with pytest.raises(ConfigError, match=r"needs Flower 9\.9\.9, .* found 1\.41\.0"):
        build_bundle(ROOT)


def test_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no pyproject\.toml"):
        build_bundle(tmp_path)


def test_sources_that_flower_cannot_bundle_are_one_clear_line(tmp_path: Path) -> None:
    tree = _copy(tmp_path / "checkout", mode=0o644, mtime=1_000_000_000, backwards=False)
    (tree / "pyproject.toml").write_text("[project]\nname = 'panfm'\n")
    with pytest.raises(ConfigError, match="Flower could not build the bundle: "):
        build_bundle(tree)
