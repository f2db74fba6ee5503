"""How a site begins: a policy that opens nothing yet, an identity of its own, and an audit log that starts with both.

Nothing that exists is ever overwritten, so beginning again is safe: what is there is kept, what is missing is made.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import panfm
from panfm.durable import write_file
from panfm.errors import AuditError, ConfigError
from panfm.site.audit_log import ANCHOR, LOG, STATE, AuditLog, has_log
from panfm.site.identity import (
    KEYS,
    PRIVATE_KEY,
    SiteIdentity,
    check_passphrase,
    has_identity,
    identity_of,
    read_public_key,
    write_identity,
)
from panfm.site.policy import Policy
from panfm.site.policy_file import POLICY_FILE, read_policy
from panfm.site.policy_template import template


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a site's folder holds now."""

    public_key: str
    made: tuple[str, ...]
    """Names of what was made; all else was there before."""


def begin_site(folder: Path, policy: Policy, passphrase: Callable[[], str | None]) -> Begun:
    """Make what the site's folder lacks.

    Args:
        policy: of a new site; where the folder has a policy already, it must name the same site, coordinators and organs.
        passphrase: for a new key; None: the key is kept without. Called only when a key is made.
    Raises: ConfigError when the folder belongs to another site, or cannot be written; AuditError when its log is gone.
    """
    is_new = not has_identity(folder)
    secret = passphrase() if is_new else None  # before anything is made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = _begin_policy(folder, policy)
        if not is_new:
            _check_has_log(folder)
            return Begun(public_key=read_public_key(folder), made=made)
        identity = begin_identity(folder, policy.site, secret)
    except OSError as error:
        raise ConfigError(f"the site's folder {folder} cannot be written ({error.strerror}); choose another") from error
    return Begun(public_key=identity.public_key, made=(*made, f"{KEYS}/{PRIVATE_KEY}", f"{STATE}/{LOG}"))


def begin_identity(folder: Path, site: str, passphrase: str | None = None) -> SiteIdentity:
    """Make a site's key and its audit log.

    The key comes last: where there is a key there is a log, and a site whose log is gone cannot be taken for a new one.

    Raises: ConfigError when there is a key already or the passphrase is too short; AuditError when there is a log already.
    """
    check_passphrase(passphrase)
    if has_identity(folder):
        raise ConfigError(f"{folder} has an identity already; a site keeps the one it has")
    if has_log(folder):
        raise AuditError(
            f"{folder / STATE} holds the audit log of a site whose key is gone; restore {KEYS}/ from the backup, "
            "or move that log elsewhere to begin as a new site"
        )
    identity = identity_of(Ed25519PrivateKey.generate())
    AuditLog.create(folder, identity.signing_key, {"site": site, "panfm_version": panfm.__version__})
    try:
        write_identity(folder, identity, passphrase)
    except BaseException:
        for name in (LOG, ANCHOR):  # of a key that nobody has
            (folder / STATE / name).unlink(missing_ok=True)
        raise
    return identity


def _begin_policy(folder: Path, policy: Policy) -> tuple[str, ...]:
    if not (folder / POLICY_FILE).exists():
        write_file(folder / POLICY_FILE, template(policy).encode())
        return (POLICY_FILE,)
    there = read_policy(folder)
    for name in ("site", "coordinator_keys", "organs"):
        if getattr(there, name) != getattr(policy, name):
            raise ConfigError(
                f"{folder / POLICY_FILE} exists and has another {name}; correct that file by hand, or choose another folder"
            )
    return ()


def _check_has_log(folder: Path) -> None:
    if not has_log(folder):
        raise AuditError(
            f"{folder} has a key but no audit log; restore {STATE}/{LOG} and {STATE}/{ANCHOR} from the backup. "
            f"Without one, move {KEYS}/ elsewhere: the site begins anew, with another key that the coordinator sees"
        )
