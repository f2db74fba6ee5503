"""Writes `requirements.txt` into a folder of wheels: each with its SHA-256, so that an image holds what was fetched here.

Images are built where there is no package index (a hospital's network, a machine in a rack): `make wheelhouse` fetches and builds
all wheels on a machine that has one, and the folder is carried over.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

LEFT_OUT = frozenset({"uv"})
"""Flower requires it, to install at run time what a bundle asks for, which nobody here is allowed to do."""


def requirement(wheel: Path) -> str:
    """One wheel, pinned by its name, version and digest."""
    name, version = wheel.name.split("-")[:2]  # PEP 427: neither holds a hyphen
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return f"{name.replace('_', '-').lower()}=={version} --hash=sha256:{digest}"


def requirements(folder: Path) -> str:
    """All wheels of a folder, a line each, sorted by name."""
    lines = (requirement(wheel) for wheel in folder.glob("*.whl"))
    return "".join(f"{line}\n" for line in sorted(lines) if line.partition("==")[0] not in LEFT_OUT)


if __name__ == "__main__":
    wheelhouse = Path(sys.argv[1])
    (wheelhouse / "requirements.txt").write_text(requirements(wheelhouse), encoding="utf-8")
