"""`panfm site init`: what a person at the terminal sees, and what never stands on a command line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from panfm.cli.main import app
from panfm.errors import ConfigError
from panfm.signing import fingerprint
from panfm.site import identity
from panfm.site.identity import SiteIdentity, read_public_key
from panfm.site.policy_file import read_policy

SECRET = "correct horse battery"


def _words(folder: Path, *more: str) -> list[str]:
    named = ["--folder", str(folder), "--site", "north", "--coordinator-key", "ab" * 32, "--organs", "brain, liver"]
    return ["site", "init", *named, *more]


def _init(folder: Path, *more: str, passphrase_file: Path | None = None) -> Result:
    """Without anybody to ask."""
    around = {"PANFM_PASSPHRASE_FILE": str(passphrase_file) if passphrase_file else None, "CREDENTIALS_DIRECTORY": None}
    return CliRunner().invoke(app, _words(folder, *more), env=around)


def test_site_is_made_and_the_person_is_told_what_to_do_next(tmp_path: Path) -> None:
    done = _init(tmp_path / "site", "--no-passphrase")
    assert done.exit_code == 0
    public = read_public_key(tmp_path / "site")
    short = fingerprint(public)
    assert public in done.stdout
    assert " ".join(short[place : place + 4] for place in range(0, 32, 4)) in done.stdout
    for said in ("policy.yaml", "keys/signing.key", "state/audit.log", "What to do next", "deploy/guides/site.md"):
        assert said in done.stdout
    assert SiteIdentity.open(tmp_path / "site").signing_key.private_bytes_raw().hex() not in done.stdout
    policy = read_policy(tmp_path / "site")
    assert (policy.site, policy.coordinator_keys, policy.organs) == ("north", ("ab" * 32,), ("brain", "liver"))

    again = _init(tmp_path / "site")
    assert again.exit_code == 0
    assert "is complete; nothing was changed" in again.stdout


def test_nobody_to_ask_is_one_clear_line_and_makes_nothing(tmp_path: Path) -> None:
    done = _init(tmp_path / "site")
    assert isinstance(done.exception, ConfigError)
    assert done.stdout == ""
    assert "PANFM_PASSPHRASE_FILE" in str(done.exception)
    assert "--no-passphrase" in str(done.exception)
    assert not (tmp_path / "site").exists()


def test_passphrase_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_COST", 2**8)
    path = tmp_path / "passphrase"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    done = _init(tmp_path / "site", passphrase_file=path)
    assert done.exit_code == 0
    assert SECRET not in done.output
    assert SiteIdentity.open(tmp_path / "site", lambda: SECRET).public_key in done.stdout
    for written in (path for path in (tmp_path / "site").rglob("*") if path.is_file()):
        assert SECRET.encode() not in written.read_bytes()


def test_passphrase_is_asked_for_twice_and_not_shown(tmp_path: Path) -> None:
    person, terminal = pty.openpty()
    call = [sys.executable, "-c", "from panfm.cli.main import main; main()", *_words(tmp_path / "site")]
    around = {name: value for name, value in os.environ.items() if name != "PANFM_PASSPHRASE_FILE"}
    asked = subprocess.Popen(call, stdin=terminal, stdout=terminal, stderr=terminal, env=around)
    os.close(terminal)
    seen = b""
    for _ in range(2):
        while not seen.endswith(b": "):
            seen += os.read(person, 1024)
        os.write(person, SECRET.encode() + b"\n")
        seen += os.read(person, 1024)
    assert asked.wait() == 0
    os.close(person)
    assert SECRET.encode() not in seen
    assert SiteIdentity.open(tmp_path / "site", lambda: SECRET).public_key == read_public_key(tmp_path / "site")


@pytest.mark.parametrize(
    ("option", "word"), [("--site=a b", "site"), ("--coordinator-key=ab", "coordinator_keys"), ("--organs=", "organ")]
)
def test_mistaken_word_is_one_clear_line(tmp_path: Path, option: str, word: str) -> None:
    done = _init(tmp_path / "site", "--no-passphrase", option)
    assert isinstance(done.exception, ConfigError)
    assert word in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "site").exists()


def test_passphrase_is_no_option() -> None:
    shown = CliRunner().invoke(app, ["site", "init", "--help"], env={"COLUMNS": "200"}).stdout
    assert "--no-passphrase" in shown
    assert "--passphrase" not in shown.replace("--no-passphrase", "")
