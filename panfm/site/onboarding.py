"""How a site begins: a policy that opens nothing yet, an identity of its own, an audit log that starts with both, and the card
with which it introduces itself.

Nothing that exists is ever overwritten, so beginning again is safe: what is there is kept, what is missing is made.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import panfm
from panfm.durable import write_file, write_private
from panfm.enrolment.card import SiteCard, read_card
from panfm.enrolment.certificates import new_tls_key, public_key_pem, request_for
from panfm.enrolment.names import written
from panfm.enrolment.node_key import new_node_key
from panfm.enrolment.signed_file import signed, to_bytes
from panfm.errors import AuditError, ConfigError, ProtocolError
from panfm.protocol import PROTOCOL_VERSION
from panfm.site.audit_log import ANCHOR, LOG, STATE, AuditLog, has_log
from panfm.site.bundles import FLOWER_VERSION
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
from panfm.site.joining import CARD, NODE_KEY, NODE_PUBLIC_KEY, TLS_KEY, read_node_key
from panfm.site.policy import Policy
from panfm.site.policy_file import POLICY_FILE, read_policy
from panfm.site.policy_template import template


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a site's folder holds now."""

    public_key: str
    made: tuple[str, ...]
    """Names of what was made; all else was there before."""


def begin_site(
    folder: Path,
    policy: Policy,
    now: datetime,
    passphrase: Callable[[], str | None],
    unlock: Callable[[], str] | None = None,
) -> Begun:
    """Make what the site's folder lacks; a card that no longer says what the folder holds is made anew.

    Args:
        policy: of a new site; where the folder has a policy already, it must name the same site, coordinators and organs.
        passphrase: for a new key; None: the key is kept without. Called only when a key is made.
        unlock: asks for the passphrase of the key that is there. Called only when a card must be signed with it.
    Raises: ConfigError when the folder belongs to another site, or cannot be written; AuditError when its log is gone.
    """
    is_new = not has_identity(folder)
    secret = passphrase() if is_new else None  # before anything is made
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = _begin_policy(folder, policy)
        if is_new:
            identity: SiteIdentity | None = begin_identity(folder, policy.site, secret)
            made += (f"{KEYS}/{PRIVATE_KEY}", f"{STATE}/{LOG}")
        else:
            identity = None
            _check_has_log(folder)
        made += _begin_node_keys(folder) + _begin_card(
            folder, now, lambda: identity or SiteIdentity.open(folder, unlock)
        )
    except OSError as error:
        raise ConfigError(f"the site's folder {folder} cannot be written ({error.strerror}); choose another") from error
    return Begun(public_key=read_public_key(folder), made=made)


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


def _begin_node_keys(folder: Path) -> tuple[str, ...]:
    made = []
    if not (folder / NODE_KEY).exists():
        write_private(folder / NODE_KEY, new_node_key())
        made.append(NODE_KEY)
    public = f"{read_node_key(folder)}\n".encode()
    if made or not (folder / NODE_PUBLIC_KEY).exists():
        write_file(folder / NODE_PUBLIC_KEY, public)
    if not (folder / TLS_KEY).exists():
        write_private(folder / TLS_KEY, new_tls_key())
        made.append(TLS_KEY)
    return tuple(made)


def _begin_card(folder: Path, now: datetime, identity: Callable[[], SiteIdentity]) -> tuple[str, ...]:
    """Make the card if there is none, or if it says something else than the folder now holds."""
    policy, tls_key = read_policy(folder), (folder / TLS_KEY).read_bytes()
    card = SiteCard(
        site=policy.site,
        organs=policy.organs,
        signing_key=read_public_key(folder),
        node_key=read_node_key(folder),
        tls_request=request_for(tls_key, policy.site).decode(),
        panfm_version=panfm.__version__,
        flower_version=FLOWER_VERSION,
        protocol_version=PROTOCOL_VERSION,
        made_at=written(now),
    )
    if _says_the_same(folder, card):
        return ()
    write_file(folder / CARD, to_bytes(signed(card, identity().signing_key)))
    return (CARD,)


def _says_the_same(folder: Path, card: SiteCard) -> bool:
    """Whether the card that is there says what this one does; when it was made and how the request was signed do not count."""
    try:
        there = read_card((folder / CARD).read_bytes())
    except (FileNotFoundError, ProtocolError):
        return False
    of_one_key = public_key_pem(there.tls_request.encode()) == public_key_pem(card.tls_request.encode())
    same = replace(card, made_at=there.made_at, tls_request=there.tls_request, signature=there.signature)
    return of_one_key and there == same


def _check_has_log(folder: Path) -> None:
    if not has_log(folder):
        raise AuditError(
            f"{folder} has a key but no audit log; restore {STATE}/{LOG} and {STATE}/{ANCHOR} from the backup. "
            f"Without one, move {KEYS}/ elsewhere: the site begins anew, with another key that the coordinator sees"
        )
