"""Building the bundle of code that a study sends, so that the same sources give the same bytes on every machine.

The coordinator builds it to send it, a site builds it from the tag that it reviewed to compare the digests. Flower's own builder
does the work, in a process of its own and on a copy of the few files that travel: it stamps no date and no mode, sorts by
name, and so depends on nothing but the sources and its own release, which is checked.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from panfm.errors import ConfigError
from panfm.site.bundles import FLOWER_VERSION, Bundle, read_bundle

_FILES = ("pyproject.toml", ".gitignore")
_FOLDERS = ("client", "server")
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
_TIMEOUT_S = 120.0


def build_bundle(tree: Path) -> Bundle:
    """The bundle of a checkout.

    Raises: ConfigError when the folder is no checkout of panfm or Flower's builder of the right release is not here.
    """
    _check_tree(tree)
    builder = _builder()
    with bundle_sources(tree) as copy:
        return read_bundle(_built(builder, copy))


@contextmanager
def bundle_sources(tree: Path) -> Iterator[Path]:
    """A copy of the few files of a checkout that travel, while the block runs: Flower looks at all that lies beside them."""
    with TemporaryDirectory() as temporary:
        copy = Path(temporary) / "panfm"  # of its own name, for Flower minds what the folder is called
        copy.mkdir()
        for name in _FILES:
            shutil.copyfile(tree / name, copy / name)
        for name in _FOLDERS:
            shutil.copytree(tree / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        yield copy


def _check_tree(tree: Path) -> None:
    missing = [name for name in (*_FILES, *_FOLDERS) if not (tree / name).exists()]
    if missing:
        raise ConfigError(f"{tree} has no {missing[0]}, so it is no checkout of panfm; give the folder of one")


def _builder() -> Path:
    try:
        found = importlib.metadata.version("flwr")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    program = Path(sys.executable).with_name("flwr")
    if found != FLOWER_VERSION or not program.is_file():
        raise ConfigError(
            f"building a bundle needs Flower {FLOWER_VERSION}, for another release writes other bytes; found {found}: "
            "install panfm[federation] with constraints.txt"
        )
    return program


def _built(builder: Path, copy: Path) -> bytes:
    done = subprocess.run(
        [builder, "build", "--app", copy],
        cwd=copy.parent,
        env=os.environ | _QUIET | {"FLWR_HOME": str(copy.parent / "flower")},
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
    )
    bundles = list(copy.parent.glob("*.fab"))
    if done.returncode != 0 or len(bundles) != 1:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ConfigError(f"Flower could not build the bundle: {said}")
    return bundles[0].read_bytes()
