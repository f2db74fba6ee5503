"""Signatures of the coordinator, with a published test vector and every way a signature can be wrong."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import ConfigError
from panfm.signing import is_signed_by, load_or_make_key, public_hex, sign

# RFC 8032, section 7.1, test 2: the one-byte message 0x72.
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
DIGEST = hashlib.sha256(b"task").hexdigest()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))


def test_rfc_8032_vector(key: Ed25519PrivateKey) -> None:
    assert public_hex(key) == PUBLIC
    assert sign(key, "72") == SIGNATURE
    assert is_signed_by(PUBLIC, "72", SIGNATURE)


def test_another_digest_key_or_signature_is_refused(key: Ed25519PrivateKey) -> None:
    signature = sign(key, DIGEST)
    other = Ed25519PrivateKey.generate()
    assert is_signed_by(PUBLIC, DIGEST, signature)
    assert not is_signed_by(PUBLIC, hashlib.sha256(b"other").hexdigest(), signature)
    assert not is_signed_by(public_hex(other), DIGEST, signature)
    assert not is_signed_by(PUBLIC, DIGEST, sign(other, DIGEST))


@given(public=st.text(max_size=70), signature=st.text(max_size=140))
def test_nonsense_is_unsigned_and_not_an_error(public: str, signature: str) -> None:
    assert not is_signed_by(public, DIGEST, SIGNATURE)
    assert not is_signed_by(PUBLIC, DIGEST, signature)
    assert not is_signed_by(PUBLIC, signature, SIGNATURE)


@given(bit=st.integers(0, 511))
def test_one_turned_bit_is_enough(bit: int) -> None:
    turned = bytearray(bytes.fromhex(SIGNATURE))
    turned[bit // 8] ^= 1 << bit % 8
    assert not is_signed_by(PUBLIC, "72", turned.hex())


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "coordinator.key"
    made = load_or_make_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert public_hex(load_or_make_key(path)) == public_hex(made)
    assert public_hex(load_or_make_key(tmp_path / "other.key")) != public_hex(made)


@pytest.mark.parametrize("content", [b"", b"abc", b"zz" * 32, SECRET[:-2].encode(), b"\xff\xfe"])
def test_a_damaged_key_is_named_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "coordinator.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"coordinator\.key should hold 64 hexadecimal digits"):
        load_or_make_key(path)
    assert path.read_bytes() == content
