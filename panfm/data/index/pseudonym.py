"""Pseudonyms by a keyed hash: the same person always gets the same one, and only the key's owner can tell whose it is.

A plain hash of a hospital number is no pseudonym, because all numbers can be tried. The key is made once, with mode 0600,
beside the folder of the site's tables and never in it, so that a copy of the folder is no copy of the key. Splits are
drawn with the same key, so that nobody can choose a subject's split by choosing an identifier.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from panfm.errors import ConfigError, DataError

KEY_FILE = "panfm-pseudonym.key"

_KEY_BYTES = 32
_SUBJECT_CHARACTERS = 16
"""80 bits: two of a million subjects share one with a chance below 1e-12, and that would be seen."""
_VISIT_CHARACTERS = 8
"""40 bits, among the visits of one subject."""

SPLITS = ("pretrain", "probe", "validation", "test")
"""What a subject's scans may be used for; only `pretrain` is trained on in a study."""


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The site's secret; its representation shows nothing of it."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Tells keys apart and says nothing about them."""
        return self._digest("fingerprint").hex()[:16]

    def subject(self, person: str) -> str:
        """The pseudonym of a person, by whatever identifier the site's folders or tables have for them."""
        return f"s-{self._word(_SUBJECT_CHARACTERS, 'subject', person)}"

    def visit(self, person: str, visit: str) -> str:
        """The pseudonym of a visit, empty for none: session names are often dates, so their order is not kept."""
        return f"v-{self._word(_VISIT_CHARACTERS, 'visit', person, visit)}" if visit else ""

    def split(self, person: str, shares: Mapping[str, float]) -> str:
        """The split of a person; one whose share grows keeps the people that it has, in the order of `SPLITS`."""
        drawn = int.from_bytes(self._digest("split", person)[:8], "big") / 2**64
        for name in (name for name in SPLITS if shares.get(name, 0) > 0):
            last = name
            drawn -= shares[name]
            if drawn < 0:
                break
        return last

    def _word(self, length: int, *parts: str) -> str:
        return base64.b32encode(self._digest(*parts)).decode().lower()[:length]

    def _digest(self, *parts: str) -> bytes:
        # One accented letter may be stored as one character or as two; bytes of no alphabet come as surrogates.
        words = [unicodedata.normalize("NFC", part).encode(errors="surrogateescape") for part in ("panfm", *parts)]
        message = b"".join(len(word).to_bytes(4, "big") + word for word in words)
        return hmac.digest(self.secret, message, hashlib.sha256)


def check_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares of the splits, which must sum to 1. Raises: ConfigError."""
    unknown = sorted(set(shares) - set(SPLITS))
    if unknown:
        raise ConfigError(f"unknown split {', '.join(unknown)}: there are {', '.join(SPLITS)}; correct --split")
    if any(not 0 <= share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        text = " ".join(f"{name}={share:g}" for name, share in shares.items())
        raise ConfigError(f"shares of the splits should be 0 to 1 and sum to 1, got {text}; correct --split")
    return dict(shares)


def site_key(path: Path, *, kept_out_of: tuple[Path, ...]) -> PseudonymKey:
    """The key in a file, made there on first use.

    Args:
        path: the key's file.
        kept_out_of: folders that are copied or shared, in which it must not lie.
    Raises: ConfigError when it lies in one of them; DataError when others may read it, or it is no key.
    """
    for folder in kept_out_of:
        if path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"the key {path} should lie outside {folder}, which may be copied with all it holds; choose another --key"
            )
    try:
        return _read_key(path) if path.exists() else _make_key(path)
    except OSError as error:
        raise DataError(
            f"the key {path} cannot be read or made ({error.strerror}); correct --key or its rights"
        ) from error


def _make_key(path: Path) -> PseudonymKey:
    path.parent.mkdir(parents=True, exist_ok=True)
    secret = secrets.token_bytes(_KEY_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secret.hex() + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    return PseudonymKey(secret)


def _read_key(path: Path) -> PseudonymKey:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise DataError(f"the key {path} can be read by others on this machine; run `chmod 600 {path}`")
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except ValueError:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise DataError(
            f"{path} holds no key of {_KEY_BYTES} bytes; restore it from the site's backup, or pseudonyms change"
        )
    return PseudonymKey(secret)
