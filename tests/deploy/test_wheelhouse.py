"""The list of wheels that an image is built from: each with its digest, as pip demands it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deploy.wheelhouse import requirements

ROOT = Path(__file__).resolve().parents[2]


def _wheel(folder: Path, name: str, version: str = "1.0") -> Path:
    """The smallest wheel that pip installs."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


def test_each_wheel_stands_with_its_version_and_digest(tmp_path: Path) -> None:
    one, two = _wheel(tmp_path, "two_words", "2.13.0+cpu"), _wheel(tmp_path, "Aaa")
    (tmp_path / "requirements.txt").write_text("of an earlier call")
    digests = [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in (two, one)]
    assert requirements(tmp_path).splitlines() == [
        f"aaa==1.0 --hash=sha256:{digests[0]}",
        f"two-words==2.13.0+cpu --hash=sha256:{digests[1]}",
    ]


def test_what_installs_at_run_time_is_left_out(tmp_path: Path) -> None:
    _wheel(tmp_path, "uv")
    _wheel(tmp_path, "uvicorn")
    assert requirements(tmp_path).startswith("uvicorn==")
    assert len(requirements(tmp_path).splitlines()) == 1


@pytest.mark.parametrize("is_changed", [False, True])
def test_pip_takes_the_wheels_as_they_were_and_no_others(tmp_path: Path, is_changed: bool) -> None:
    wheel = _wheel(tmp_path, "a_name")
    subprocess.run([sys.executable, ROOT / "deploy" / "wheelhouse.py", tmp_path], check=True)
    if is_changed:
        _wheel(tmp_path, "a_name").write_bytes(wheel.read_bytes() + b"\0")
    options = ["--no-index", "--no-deps", "--require-hashes", "--find-links", str(tmp_path), "--quiet"]
    options += ["--target", str(tmp_path / "there"), "--requirement", str(tmp_path / "requirements.txt")]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (tmp_path / "there" / "a_name.py").exists() != is_changed
    assert ("DO NOT MATCH" in done.stderr) == is_changed
