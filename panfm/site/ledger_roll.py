"""Who was ever charged: the ledger's list of subjects, as keyed hashes of their pseudonyms.

It exists because only the list can say that a subject in today's store was charged under another study years ago. A hash is
enough for that, and names nobody to those who see a backup; keyed, because pseudonyms such as sub-001 can be guessed one by one.

    state/ledger.roll     cohort and keyed hash, 40 bytes a subject; only appended to

The key follows from the site's signing key, and needs no other secret. Where the signing key is replaced the list goes on under
the key that it has, for hashes cannot be made anew of subjects who are no longer there: so that key is then kept in the ledger,
sealed for the new signing key. Whoever holds the earlier signing key can still try pseudonyms on a list that they see.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from panfm.durable import flush
from panfm.errors import AuditError
from panfm.site.audit_log import STATE
from panfm.site.ledger_book import Roll

ROLL = "ledger.roll"
_LINE_BYTES = 40
_NONCE_BYTES = 12
STOP = "nothing is charged, and so nothing is trained with privacy, until a person has looked"


@dataclass(frozen=True, slots=True)
class SubjectRoll:
    """The list below a site's folder, as one who can read it; the ledger's lock is held meanwhile."""

    _folder: Path
    _key: bytes = field(repr=False)

    def hashed(self, subjects: Collection[str]) -> frozenset[str]:
        """The names under which pseudonyms stand in the list."""
        return frozenset(
            hmac.digest(self._key, subject.encode(errors="surrogatepass"), hashlib.sha256)[:16].hex()
            for subject in subjects
        )

    def members(self, vouched: Roll) -> dict[str, int]:
        """Everybody in the part that the ledger vouches for, and in which cohort. Raises: AuditError when it is another."""
        lines = roll_content(self._folder, vouched).decode("ascii").splitlines()
        return {line[7:]: int(line[:6]) for line in lines}

    def enrol(self, vouched: Roll, hashed: Sequence[str], cohort: int) -> Roll:
        """Put subjects onto the list, on disk; they count when the next entry vouches for them."""
        content = roll_content(self._folder, vouched)
        added = "".join(f"{cohort:06d} {subject}\n" for subject in hashed).encode("ascii")
        if added:
            write_roll(self._folder, len(content), added)
        return Roll(subjects=vouched.subjects + len(hashed), sha256=hashlib.sha256(content + added).hexdigest())


def roll_content(folder: Path, vouched: Roll) -> bytes:
    """The part that the ledger vouches for; what is behind it was left by a crash before its charge.

    Raises: AuditError when it is not as it was written.
    """
    size, path = vouched.subjects * _LINE_BYTES, folder / STATE / ROLL
    content = path.read_bytes()[:size] if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != vouched.sha256:
        raise AuditError(f"{ROLL}, the list of the subjects charged, is not as it was written; {STOP}")
    return content


def write_roll(folder: Path, offset: int, content: bytes) -> None:
    """Write behind what is vouched for, and cut off what a crash left there."""
    descriptor = open_private(folder / STATE / ROLL)
    try:
        os.ftruncate(descriptor, offset)
        os.lseek(descriptor, offset, os.SEEK_SET)
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    flush(folder / STATE)


def open_private(path: Path) -> int:
    """A file to write, made for the folder's owner alone; also when it is root who writes, such as to open a cohort."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def first_roll_key(key: Ed25519PrivateKey) -> bytes:
    """The roll's key of a ledger that began under this signing key, which cannot be had from it."""
    return _derived(key, b"panfm ledger roll 1")


def sealed(roll_key: bytes, key: Ed25519PrivateKey) -> str:
    """The roll's key for the holder of a signing key alone, in hexadecimal."""
    nonce = os.urandom(_NONCE_BYTES)
    return (nonce + AESGCM(_sealing_key(key)).encrypt(nonce, roll_key, None)).hex()


def unsealed(text: str, key: Ed25519PrivateKey) -> bytes:
    """Raises: AuditError when it was sealed for another key."""
    content = bytes.fromhex(text)
    try:
        return AESGCM(_sealing_key(key)).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], None)
    except (InvalidTag, ValueError) as error:
        raise AuditError(
            f"the key of {ROLL} in the privacy ledger is not for the site's signing key; {STOP}"
        ) from error


def _sealing_key(key: Ed25519PrivateKey) -> bytes:
    return _derived(key, b"panfm ledger roll sealed 1")


def _derived(key: Ed25519PrivateKey, purpose: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose).derive(key.private_bytes_raw())
