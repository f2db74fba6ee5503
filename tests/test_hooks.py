"""The commit hook on made files: what must never enter the history is refused by name and by content, and nothing else."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "hooks" / "refuse_private_files.py"


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = _load(SCRIPT)


def _reason(folder: Path, name: str, content: bytes) -> str | None:
    path = folder / name
    path.write_bytes(content)
    reason = hook.reason_to_refuse(path)
    assert reason is None or isinstance(reason, str)
    return reason


def _nifti_bytes(kind: type[nib.Nifti1Image] | type[nib.Nifti2Image]) -> bytes:
    return bytes(kind(np.zeros((2, 2, 2), dtype=np.float32), np.eye(4)).to_bytes())


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.OpenSSH])
@pytest.mark.parametrize("name", ["notes.txt", "identity", "settings.yaml"])
def test_private_key_is_refused_under_any_name(tmp_path: Path, form: PrivateFormat, name: str) -> None:
    key = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, form, NoEncryption())
    indented = b"key: |\n" + b"".join(b"  " + line + b"\n" for line in key.splitlines())
    assert "private key" in (_reason(tmp_path, name, key) or "")
    assert "private key" in (_reason(tmp_path, name, indented) or "")


@pytest.mark.parametrize("name", ["site.key", "ca.pem", "SITE.KEY", "store.p12"])
def test_key_file_is_refused_by_its_suffix(tmp_path: Path, name: str) -> None:
    raw = Ed25519PrivateKey.generate().private_bytes_raw()
    assert "keys" in (_reason(tmp_path, name, raw) or "")


def test_public_key_may_be_committed(tmp_path: Path) -> None:
    public = Ed25519PrivateKey.generate().public_key()
    assert _reason(tmp_path, "site.pub", public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)) is None
    assert _reason(tmp_path, "site.txt", public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)) is None


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ", "a.dcm", "a.mgz", "a.nrrd", "a.mha", "a.mhd"])
def test_scan_is_refused_by_its_suffix(tmp_path: Path, name: str) -> None:
    assert "scans" in (_reason(tmp_path, name, b"") or "")


SCANS = {
    "nifti1": _nifti_bytes(nib.Nifti1Image),
    "nifti2": _nifti_bytes(nib.Nifti2Image),
    "dicom": bytes(128) + b"DICM" + bytes(64),
    "nrrd": b"NRRD0004\ntype: short\n",
    "metaimage": b"ObjectType = Image\nNDims = 3\n",
}


@pytest.mark.parametrize("kind", SCANS)
def test_scan_is_refused_by_its_content(tmp_path: Path, kind: str) -> None:
    assert "scan" in (_reason(tmp_path, "notes.bin", SCANS[kind]) or "")
    assert "scan" in (_reason(tmp_path, "notes.bin.gz", gzip.compress(SCANS[kind])) or "")


def test_large_file_is_refused_and_the_limit_itself_is_not(tmp_path: Path) -> None:
    assert _reason(tmp_path, "table.csv", b"x" * 500_000) is None
    assert "500,001" in (_reason(tmp_path, "table.csv", b"x" * 500_001) or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.py", b""),
        ("keys.py", b'"""Keys of a site."""\n'),
        ("damaged.gz", b"\x1f\x8b not gzip"),
        ("text.txt.gz", gzip.compress(b"nothing of a scan", mtime=0)),
        ("short.bin", b"DICM"),
    ],
)
def test_ordinary_file_passes(tmp_path: Path, name: str, content: bytes) -> None:
    assert _reason(tmp_path, name, content) is None


def test_link_and_removed_file_pass(tmp_path: Path) -> None:
    link = tmp_path / "scan"
    link.symlink_to(tmp_path / "elsewhere.nii")
    assert hook.reason_to_refuse(link) is None
    assert hook.reason_to_refuse(tmp_path / "removed.txt") is None


def test_script_names_each_refused_file_and_fails(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.nii"
    good.write_text("fine", encoding="utf-8")
    bad.write_bytes(b"")
    done = subprocess.run([sys.executable, SCRIPT, good, bad], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"refused {bad}: ")
    assert str(good) not in done.stderr
    assert subprocess.run([sys.executable, SCRIPT, good], check=False).returncode == 0


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """git in a folder of its own, deaf to the settings of the person and of a surrounding commit."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "PRE_COMMIT_HOME": str(folder / ".cache"),
    }
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", *identity, *arguments],
        cwd=folder,
        env=surroundings | quiet,
        capture_output=True,
        text=True,
        check=False,
    )


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_git_refuses_the_commit_once_hooks_are_installed(tmp_path: Path) -> None:
    for name in (".ci/hooks/refuse_private_files.py", ".pre-commit-config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    environment = tmp_path / ".venv" / "bin"
    environment.parent.mkdir()
    environment.symlink_to(Path(sys.executable).parent)  # the hooks call .venv/bin/..., as `make` lays it out
    (tmp_path / ".git" / "info").mkdir(parents=True)
    assert _git(tmp_path, "init", "--quiet").returncode == 0
    (tmp_path / ".git" / "info" / "exclude").write_text(".venv\n.cache\n", encoding="utf-8")
    installed = subprocess.run([environment / "pre-commit", "install"], cwd=tmp_path, capture_output=True, check=False)
    assert installed.returncode == 0, installed.stdout

    (tmp_path / "notes.bin").write_bytes(SCANS["nifti1"])
    assert _git(tmp_path, "add", "notes.bin", ".pre-commit-config.yaml").returncode == 0
    refused = _git(tmp_path, "commit", "-m", "a scan")
    assert refused.returncode != 0
    assert "refused notes.bin" in refused.stdout + refused.stderr

    assert _git(tmp_path, "rm", "--quiet", "--cached", "notes.bin").returncode == 0
    accepted = _git(tmp_path, "commit", "-m", "settings only")
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr


@needs_git
def test_whole_checkout_passes_its_own_hook() -> None:
    listed = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert SCRIPT in files
    assert {str(path): reason for path in files if (reason := hook.reason_to_refuse(path))} == {}
