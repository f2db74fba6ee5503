"""A site's key: made once, for its owner's eyes only, and under a passphrase that is never on a command line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from panfm.errors import ConfigError
from panfm.signing import fingerprint, is_signed_by, sign
from panfm.site import identity
from panfm.site.identity import (
    SiteIdentity,
    found_passphrase,
    has_identity,
    identity_of,
    read_public_key,
    write_identity,
)

SECRET = "correct horse battery"


@pytest.fixture(autouse=True)
def no_passphrase_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PANFM_PASSPHRASE_FILE", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(identity, "_COST", 2**8)  # the real one is tested once


@pytest.fixture
def made() -> SiteIdentity:
    return identity_of(Ed25519PrivateKey.generate())


def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SiteIdentity.open(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_identity_comes_back_and_only_its_owner_can_read_it(tmp_path: Path, made: SiteIdentity) -> None:
    assert not has_identity(tmp_path)
    write_identity(tmp_path, made, None)
    assert has_identity(tmp_path)
    opened = SiteIdentity.open(tmp_path)
    assert opened.public_key == made.public_key == read_public_key(tmp_path)
    digest = "ab" * 32
    assert is_signed_by(made.public_key, digest, sign(opened.signing_key, digest))
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "keys" / "signing.key").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == ["signing.key", "signing.pub"]


def test_umask_of_the_person_opens_nothing(tmp_path: Path, made: SiteIdentity) -> None:
    before = os.umask(0)
    try:
        write_identity(tmp_path, made, None)
    finally:
        os.umask(before)
    assert SiteIdentity.open(tmp_path).public_key == made.public_key


def test_representation_shows_the_public_half_only(made: SiteIdentity) -> None:
    assert made.public_key in repr(made)
    assert "signing_key" not in repr(made)
    assert made.signing_key.private_bytes_raw().hex() not in repr(made)


def test_fingerprint_is_the_start_of_a_hash_of_the_key(made: SiteIdentity) -> None:
    assert made.fingerprint == fingerprint(made.public_key)
    # RFC 8032, test 1, hashed with sha256sum
    assert fingerprint("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a") == _RFC_8032_FINGERPRINT


_RFC_8032_FINGERPRINT = "21fe31dfa154a261626bf854046fd227"


def test_a_key_is_never_replaced(tmp_path: Path, made: SiteIdentity) -> None:
    write_identity(tmp_path, made, None)
    with pytest.raises(ConfigError, match="exists already"):
        write_identity(tmp_path, identity_of(Ed25519PrivateKey.generate()), None)
    assert SiteIdentity.open(tmp_path).signing_key.private_bytes_raw() == made.signing_key.private_bytes_raw()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_key_that_others_can_use_is_refused_with_the_remedy(tmp_path: Path, made: SiteIdentity, mode: int) -> None:
    write_identity(tmp_path, made, None)
    (tmp_path / "keys" / "signing.key").chmod(mode)
    _refused(tmp_path, f"mode {mode:o}", f"chmod 600 {tmp_path}/keys/signing.key")
    (tmp_path / "keys" / "signing.key").chmod(0o600)
    (tmp_path / "keys").chmod(0o750)
    _refused(tmp_path, f"chmod 700 {tmp_path}/keys`")
    (tmp_path / "keys").chmod(0o700)
    SiteIdentity.open(tmp_path)


def test_what_is_no_key_is_one_clear_line(tmp_path: Path, made: SiteIdentity) -> None:
    _refused(tmp_path, "there is no", "panfm site init")
    write_identity(tmp_path, made, None)
    path = tmp_path / "keys" / "signing.key"
    other = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for content, said in ((b"", "holds no key"), (b"\xff" * 100, "holds no key"), (other, "Ed25519")):
        path.write_bytes(content)
        _refused(tmp_path, said)
    path.unlink()
    path.mkdir(mode=0o700)
    _refused(tmp_path, "cannot be read")


@pytest.mark.parametrize("content", ["", "ab", "AB" * 32, "ü" * 64])
def test_public_half_that_is_none_is_one_clear_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(ConfigError, match="run `panfm site init` or restore it"):
        read_public_key(tmp_path)
    (tmp_path / "keys" / "signing.pub").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="restore it"):
        read_public_key(tmp_path)


# ---- passphrase -----------------------------------------------------------------------------------------------------


@pytest.fixture
def locked(tmp_path: Path, made: SiteIdentity) -> Path:
    """A site's folder whose key is under a passphrase."""
    (tmp_path / "site").mkdir()
    write_identity(tmp_path / "site", made, SECRET)
    return tmp_path / "site"


def _passphrase_file(folder: Path, content: bytes = SECRET.encode() + b"\n", mode: int = 0o600) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "panfm-passphrase"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_key_under_a_passphrase_needs_it(locked: Path, made: SiteIdentity) -> None:
    assert made.signing_key.private_bytes_raw() not in (locked / "keys" / "signing.key").read_bytes()
    _refused(locked, "under a passphrase", "PANFM_PASSPHRASE_FILE", "systemd credential")
    assert SiteIdentity.open(locked, lambda: SECRET).public_key == made.public_key
    for wrong in ("", "wrong horse battery", SECRET + " "):
        with pytest.raises(ConfigError, match="opened by another passphrase") as caught:
            SiteIdentity.open(locked, partial(str, wrong))
        assert not wrong or wrong not in str(caught.value)


def test_passphrase_is_found_in_a_named_file(
    locked: Path, tmp_path: Path, made: SiteIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _passphrase_file(tmp_path / "secrets")
    monkeypatch.setenv("PANFM_PASSPHRASE_FILE", str(path))
    assert SiteIdentity.open(locked).public_key == made.public_key
    path.chmod(0o644)
    _refused(locked, f"chmod 600 {path}")
    for content in (b"", b"\n", b"two\nlines\n", b"\xff\xff"):
        _passphrase_file(tmp_path / "secrets", content)
        _refused(locked, "should hold the passphrase")
    path.unlink()
    _refused(locked, "there is no")


def test_passphrase_is_found_as_systemds_credential(
    locked: Path, tmp_path: Path, made: SiteIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert found_passphrase() is None
    _passphrase_file(tmp_path / "credentials", mode=0o440)  # as systemd's access lists look
    assert SiteIdentity.open(locked).public_key == made.public_key


def test_value_of_an_environment_variable_is_no_passphrase(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PANFM_PASSPHRASE", "PANFM_PASSPHRASE_FILE"):
        monkeypatch.setenv(name, SECRET)
        with pytest.raises(ConfigError):
            SiteIdentity.open(locked)


def test_key_without_a_passphrase_asks_for_none(
    tmp_path: Path, made: SiteIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_identity(tmp_path, made, None)
    monkeypatch.setenv("PANFM_PASSPHRASE_FILE", "/nowhere")
    assert SiteIdentity.open(tmp_path, lambda: pytest.fail("asked")).public_key == made.public_key


def test_short_passphrase_is_refused_before_anything_is_made(tmp_path: Path, made: SiteIdentity) -> None:
    with pytest.raises(ConfigError, match="at least 12 characters"):
        write_identity(tmp_path, made, "eleven char")
    assert list(tmp_path.iterdir()) == []


def test_passphrase_is_stretched_as_the_file_says(
    tmp_path: Path, made: SiteIdentity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: scrypt's 32 bytes, in hexadecimal, are the password of an ordinary PKCS#8 file."""
    monkeypatch.undo()
    assert identity._COST == 2**17
    write_identity(tmp_path, made, SECRET)
    header, _, pem = (tmp_path / "keys" / "signing.key").read_bytes().partition(b"\n")
    word, cost, r, p, salt = header.decode().split()
    assert (word, cost, r, p) == ("panfm-scrypt", "n=131072", "r=8", "p=1")
    stretched = Scrypt(salt=bytes.fromhex(salt.removeprefix("salt=")), length=32, n=131072, r=8, p=1)
    key = serialization.load_pem_private_key(pem, stretched.derive(SECRET.encode()).hex().encode())
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes_raw() == made.signing_key.private_bytes_raw()
