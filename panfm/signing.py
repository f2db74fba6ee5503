"""Ed25519 signatures: a site trains only for the coordinator whose public key its policy names.

Keys are kept as raw 32-byte hex in files that only their owner may read; the public half is what people exchange.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from panfm.errors import ConfigError


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`, made there (mode 600) when there is none yet.

    Raises: ConfigError when the file holds no key.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        key = Ed25519PrivateKey.generate()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key.private_bytes_raw().hex())
        return key
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except ValueError as error:
        raise ConfigError(
            f"{path.name} should hold 64 hexadecimal digits of an Ed25519 key; restore it from your backup"
        ) from error


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half as 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def fingerprint(public_key: str) -> str:
    """Short name of a public key (hex), to compare by eye or telephone: the first 128 bits of its SHA-256, hexadecimal."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]


def sign(key: Ed25519PrivateKey, digest: str) -> str:
    """Hex signature over a hex digest."""
    return key.sign(bytes.fromhex(digest)).hex()


def is_signed_by(public_key: str, digest: str, signature: str) -> bool:
    """Whether the hex signature over the hex digest was made by the holder of the public key."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(
            bytes.fromhex(signature), bytes.fromhex(digest)
        )
    except (InvalidSignature, ValueError):
        return False
    return True
