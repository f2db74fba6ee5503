"""Who a site is: its own Ed25519 signing key, made at the site and never shown.

    keys/signing.key   private half, PKCS#8 in PEM; mode 0600 in a folder of mode 0700, and refused otherwise
    keys/signing.pub   public half, 64 hexadecimal digits: what others may have, and what the audit log is checked with

A key may be kept under a passphrase. It is asked for at the terminal, or read from the file that PANFM_PASSPHRASE_FILE
names or from the systemd credential `panfm-passphrase`; never from a command line or from the value of an environment
variable, which other users of the machine may see. The key of the pseudonyms is another one, kept elsewhere
(`panfm.data.index.pseudonym`): who may sign for the site need not know its patients.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from panfm.durable import flush
from panfm.errors import ConfigError
from panfm.signing import fingerprint, public_hex

KEYS = "keys"
PRIVATE_KEY, PUBLIC_KEY = "signing.key", "signing.pub"
PASSPHRASE_FILE = "PANFM_PASSPHRASE_FILE"
CREDENTIAL = "panfm-passphrase"

MIN_PASSPHRASE = 12
"""Characters. Whoever has a copy of the file can try passphrases at leisure."""
_MAX_FILE_BYTES = 4096
_COST = 2**17
"""scrypt's n, with r = 8 and p = 1: 0.4 s and 128 MiB a guess, as OWASP's cheat sheet on password storage asks.

PKCS#8 as the library writes it stretches a passphrase by 2048 rounds of PBKDF2, 0.6 ms a guess; so its password is what
scrypt makes of the passphrase, and its own rounds do not matter.
"""
_STRETCHED = re.compile(rb"panfm-scrypt n=(\d{1,9}) r=8 p=1 salt=([0-9a-f]{32})\n")


@dataclass(frozen=True, slots=True)
class SiteIdentity:
    """A site's key pair; its representation shows the public half only."""

    signing_key: Ed25519PrivateKey = field(repr=False)
    public_key: str
    """64 hexadecimal digits."""

    @classmethod
    def open(
        cls, folder: Path, ask: Callable[[], str] | None = None, passphrase_file: Path | None = None
    ) -> SiteIdentity:
        """The identity in a site's folder.

        Args:
            ask: asks a person for the passphrase, where there is one and no file holds it.
            passphrase_file: holds it; None: the file that the environment names.
        Raises: ConfigError when there is none, others can read it, it is no key, or its passphrase is missing or wrong.
        """
        content = _read_private(folder / KEYS / PRIVATE_KEY)
        _check_mode((folder / KEYS).stat(), folder / KEYS, "700")
        if _STRETCHED.match(content) is None:
            return identity_of(_unwrapped(content, None))
        found = found_passphrase() if passphrase_file is None else _passphrase_in(passphrase_file)
        return identity_of(_unwrapped(content, found or _asked(ask)))

    @property
    def fingerprint(self) -> str:
        """Short name of the public key."""
        return fingerprint(self.public_key)


def identity_of(key: Ed25519PrivateKey) -> SiteIdentity:
    """The identity that a private key makes."""
    return SiteIdentity(key, public_hex(key))


def read_public_key(folder: Path) -> str:
    """The public half, for which no passphrase is needed. Raises: ConfigError when the folder holds none."""
    try:
        text = (folder / KEYS / PUBLIC_KEY).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} has no {KEYS}/{PUBLIC_KEY} that can be read; run `panfm site init` or restore it"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ConfigError(f"{folder / KEYS / PUBLIC_KEY} should hold 64 hexadecimal digits; restore it from a copy")
    return text


def has_identity(folder: Path) -> bool:
    """Whether a site's folder holds a private key, good or not."""
    return os.path.lexists(folder / KEYS / PRIVATE_KEY)


def write_identity(folder: Path, identity: SiteIdentity, passphrase: str | None) -> None:
    """Keep a new identity in a site's folder; the private key comes last, and never replaces one.

    Raises: ConfigError when there is one already or the passphrase is too short.
    """
    check_passphrase(passphrase)
    keys = folder / KEYS
    keys.mkdir(mode=0o700, exist_ok=True)
    _check_mode(keys.stat(), keys, "700")
    (keys / PUBLIC_KEY).write_text(identity.public_key + "\n", encoding="ascii")
    draft = keys / f".{PRIVATE_KEY}.draft"
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(_wrapped(identity.signing_key, passphrase))
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(draft, keys / PRIVATE_KEY)  # unlike a rename, it cannot replace a key
    except FileExistsError as error:
        raise ConfigError(f"{keys / PRIVATE_KEY} exists already; a site has one identity") from error
    finally:
        draft.unlink()
        flush(keys)


def check_passphrase(passphrase: str | None) -> None:
    """Raises: ConfigError when there is one and it is too short."""
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE:
        raise ConfigError(f"a passphrase should have at least {MIN_PASSPHRASE} characters; choose a longer one")


def found_passphrase() -> str | None:
    """The passphrase in the file that the environment names, or in systemd's credential; None where there is neither.

    Raises: ConfigError when the file cannot be read, is empty, or can be read by others.
    """
    named, credentials = os.environ.get(PASSPHRASE_FILE), os.environ.get("CREDENTIALS_DIRECTORY")
    if named:
        return _passphrase_in(Path(named))
    credential = Path(credentials) / CREDENTIAL if credentials else None
    if credential is None or not credential.is_file():
        return None
    return _first_line(_read_credential(credential), credential)


def _passphrase_in(path: Path) -> str:
    return _first_line(_read_private(path), path)


def _first_line(content: bytes, path: Path) -> str:
    try:
        passphrase = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        passphrase = ""
    if not passphrase or "\n" in passphrase:
        raise ConfigError(f"{path} should hold the passphrase of the site's key in its one line; correct it")
    return passphrase


def _asked(ask: Callable[[], str] | None) -> str:
    if ask is None:
        raise ConfigError(
            f"the site's key is under a passphrase: name a file with it in {PASSPHRASE_FILE}, "
            f"or give the service the systemd credential {CREDENTIAL}"
        )
    return ask()


def _read_private(path: Path) -> bytes:
    """The content of a file that nobody else may read."""
    try:
        with path.open("rb") as stream:
            _check_mode(os.fstat(stream.fileno()), path, "600")
            return stream.read(_MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}; run `panfm site init`, or restore it from the site's backup") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); it should be a file of this user") from error


def _read_credential(path: Path) -> bytes:
    """systemd keeps it for this service alone, and grants it by an access list, which looks like mode 0440."""
    try:
        return path.read_bytes()[:_MAX_FILE_BYTES]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); correct the service's credential") from error


def _check_mode(found: os.stat_result, path: Path, wanted: str) -> None:
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            f"{path} can be used by others on this machine (mode {stat.S_IMODE(found.st_mode):o}); "
            f"run `chmod {wanted} {path}`, and make a new identity if they may have read it"
        )


def _wrapped(key: Ed25519PrivateKey, passphrase: str | None) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    if passphrase is None:
        return key.private_bytes(*form, serialization.NoEncryption())
    salt = secrets.token_bytes(16)
    password = _stretch(passphrase, salt, _COST)
    header = f"panfm-scrypt n={_COST} r=8 p=1 salt={salt.hex()}\n".encode()
    return header + key.private_bytes(*form, serialization.BestAvailableEncryption(password))


def _unwrapped(content: bytes, passphrase: str | None) -> Ed25519PrivateKey:
    header = _STRETCHED.match(content)
    try:
        password = None
        if header is not None and passphrase is not None:
            password = _stretch(passphrase, bytes.fromhex(header[2].decode()), int(header[1]))
        key = serialization.load_pem_private_key(content, password)
    except (ValueError, TypeError, MemoryError) as error:
        expected = "is opened by another passphrase" if passphrase is not None else "holds no key"
        raise ConfigError(f"{KEYS}/{PRIVATE_KEY} {expected}; correct it, or restore the key from the backup") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{KEYS}/{PRIVATE_KEY} should hold an Ed25519 key; restore it from the site's backup")
    return key


def _stretch(passphrase: str, salt: bytes, cost: int) -> bytes:
    """A password of 256 bits, in hexadecimal."""
    return Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.encode()).hex().encode()
