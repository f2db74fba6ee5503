"""The key with which a site's SuperNode shows itself to the SuperLink: EC P-384 in OpenSSH's format, as Flower reads it.

It is another key than the site's signing key: a running program holds it without a passphrase, and it is replaced by being
admitted again. Whoever has it can pose as the site's node, and can sign nothing in the site's name.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from panfm.errors import ConfigError

_PUBLIC = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/]{182}==")


def new_node_key() -> bytes:
    """A private key."""
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    return key.private_bytes(*form, serialization.NoEncryption())


def public_node_key(private_key: bytes) -> str:
    """The public half in one line, without a comment. Raises: ConfigError when it is no P-384 key in OpenSSH's format."""
    return _in_one_line(_private(private_key).public_key())


def signed_as_node(private_key: bytes, text: bytes) -> tuple[bytes, bytes]:
    """What a SuperNode shows with each of its calls: its public key (PEM), and its signature over a text (ECDSA with SHA-256).

    Raises: ConfigError when it is no P-384 key in OpenSSH's format.
    """
    key = _private(private_key)
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(*form), key.sign(text, ec.ECDSA(hashes.SHA256()))


def check_public_node_key(line: str) -> None:
    """Raises: ValueError when this is not one P-384 key, written as `public_node_key` writes it."""
    try:
        key = serialization.load_ssh_public_key(line.encode()) if _PUBLIC.fullmatch(line) else None
    except (UnsupportedAlgorithm, NotImplementedError) as error:
        raise ValueError("the node key is no P-384 key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or _in_one_line(key) != line:
        raise ValueError("the node key is no P-384 key in OpenSSH's format")


def _private(private_key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(private_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "the node key should be a P-384 key in OpenSSH's format; restore it from the backup"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError("the node key should be on the curve P-384; restore it from the backup")
    return key


def _in_one_line(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
