"""Which sites a study has admitted: one file a site, with the card that a person looked at, and a signed kit for each.

    sites/<site>.json       the card, who admitted it and when; the node that it became; when and why it was revoked
    sites/.lock             held by whoever changes them
    kits/<site>.kit.json    what the site is given

A node key is used once: the SuperLink never takes back a key that it turned away, so what was replaced or revoked is listed, and
refused here with a word that helps.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import panfm
from panfm.coordinator.begin import own_authority, write_revoked
from panfm.coordinator.settings import (
    CLIENT_CA,
    CLIENT_CA_KEY,
    KITS,
    SERVER_CA,
    SITES,
    TASK_KEY,
    CoordinatorSettings,
    read_settings,
)
from panfm.durable import write_file
from panfm.enrolment.card import SiteCard, read_card
from panfm.enrolment.certificates import issue_client, public_key_pem, read_certificate
from panfm.enrolment.kit import SiteKit
from panfm.enrolment.names import check_name, written
from panfm.enrolment.signed_file import signed, to_bytes
from panfm.errors import ConfigError, DataError, PanfmError
from panfm.signing import fingerprint, load_or_make_key, public_hex
from panfm.site.bundles import FLOWER_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedSite:
    """A site that was admitted once; it may have been revoked since."""

    card: SiteCard
    at: str
    """When it was admitted last, UTC, ISO 8601."""
    by: str
    """Who compared the fingerprint."""
    node: str = ""
    """Its number at the SuperLink; empty until it is registered there."""
    registering: bool = False
    """The SuperLink was asked for a number, and its answer is not on record yet."""
    retired: tuple[str, ...] = ()
    """Node keys that it had before."""
    client_pem: str = ""
    """Its certificate for mutual TLS; empty without."""
    revoked_clients: tuple[str, ...] = ()
    """Serial numbers of its certificates that count no more; not of those that merely ran out or were renewed."""
    revoked_at: str = ""
    reason: str = ""

    @property
    def site(self) -> str:
        """Its name."""
        return self.card.site

    @property
    def is_revoked(self) -> bool:
        """Whether it is out."""
        return bool(self.revoked_at)


def admit(folder: Path, card: SiteCard, *, by: str, at: datetime, bundle_sha256: str) -> SiteKit:
    """Put a site on the list, or take its new card, and make its kit.

    A person must have compared the fingerprint of the card's signing key, or `is_known` must say that the study has this key.
    Raises: ConfigError when the card does not fit this study: another protocol, another key than the site's known one, a node key
        that is another site's or was used up.
    """
    settings = read_settings(folder)
    with changing(folder):
        there = {site.site: site for site in admitted_sites(folder)}
        before = there.get(card.site)
        _check_fits(card, before, [site for name, site in there.items() if name != card.site])
        site = _next_state(card, before, by, written(at), _client_certificate(folder, settings, card, at))
        kit = _kit(folder, settings, site, bundle_sha256, at)
        write_site(folder, site)
        _publish_revoked(folder, at)
        write_file(kit_path(folder, card.site), to_bytes(kit))
    return kit


def revoke(folder: Path, site: str, *, reason: str, at: datetime) -> None:
    """Take a site off the list: it is turned away at its next message once `registration.reconcile` has run.

    Raises: ConfigError when no such site is admitted.
    """
    check_name(site, "site")
    with changing(folder):
        there = {one.site: one for one in admitted_sites(folder)}
        if site not in there or there[site].is_revoked:
            known = ", ".join(name for name, one in there.items() if not one.is_revoked) or "none"
            raise ConfigError(f"no site called {site} is admitted here; there are: {known}")
        old = there[site]
        new = replace(
            old,
            node="",
            registering=False,
            retired=(*old.retired, old.card.node_key),
            revoked_clients=(*old.revoked_clients, *_serials(old.client_pem)),
            revoked_at=written(at),
            reason=" ".join(reason.split())[:500],
        )
        write_site(folder, new)
        kit_path(folder, site).unlink(missing_ok=True)
        _publish_revoked(folder, at)


def renew_kits(folder: Path, at: datetime, bundle_sha256: str) -> list[str]:
    """Make every admitted site's kit anew, with a new client certificate where the study has mutual TLS; returns their names."""
    settings, renewed = read_settings(folder), []
    with changing(folder):
        for site in admitted_sites(folder):
            if site.is_revoked:
                continue
            fresh = replace(site, client_pem=_client_certificate(folder, settings, site.card, at))
            kit = _kit(folder, settings, fresh, bundle_sha256, at)
            write_site(folder, fresh)
            write_file(kit_path(folder, site.site), to_bytes(kit))
            renewed.append(site.site)
    return renewed


def is_known(folder: Path, card: SiteCard) -> bool:
    """Whether the site is admitted and its card bears the signing key that was compared then."""
    return any(
        site.site == card.site and site.card.signing_key == card.signing_key and not site.is_revoked
        for site in admitted_sites(folder)
    )


def admitted_sites(folder: Path) -> list[AdmittedSite]:
    """Every site that was ever admitted, by name. Raises: DataError when a file of the list is damaged."""
    return [_read(path) for path in sorted((folder / SITES).glob("*.json"))]


def refused_certificates(folder: Path) -> frozenset[int]:
    """Serial numbers of the sites' certificates that count no more, as the proxy's list has them; none without mutual TLS."""
    return frozenset(int(serial) for site in admitted_sites(folder) for serial in site.revoked_clients)


def write_site(folder: Path, site: AdmittedSite) -> None:
    """Put one site's state on disk; to be called while `changing`."""
    words = asdict(site) | {"card": to_bytes(site.card).decode()}
    write_file(folder / SITES / f"{site.site}.json", (json.dumps(words, indent=1, sort_keys=True) + "\n").encode())


def kit_path(folder: Path, site: str) -> Path:
    """Where a site's kit lies."""
    return folder / KITS / f"{site}.kit.json"


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keep others from changing the list, and wait for whoever does."""
    descriptor = os.open(folder / SITES / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check_fits(card: SiteCard, before: AdmittedSite | None, others: list[AdmittedSite]) -> None:
    from panfm.protocol import PROTOCOL_VERSION  # torch comes with it, which the runtime's own processes do without

    name = card.site
    if card.protocol_version != PROTOCOL_VERSION:
        raise ConfigError(
            f"{name} speaks protocol {card.protocol_version} (panfm {card.panfm_version}), this coordinator {PROTOCOL_VERSION} "
            f"(panfm {panfm.__version__}); install the same release on both sides and make the card again"
        )
    if before is not None and not before.is_revoked and before.card.signing_key != card.signing_key:
        raise ConfigError(
            f"{name} is admitted with another signing key ({fingerprint(before.card.signing_key)}); if it has a new one, revoke "
            f"it first: panfm coordinator revoke {name}, then admit this card"
        )
    if before is not None and not before.is_revoked and card.made_at < before.card.made_at:
        raise ConfigError(
            f"this card of {name} was made on {card.made_at}, before the one that is admitted ({before.card.made_at}); ask for "
            "the latest, site_card.json"
        )
    if before is not None and card.node_key in before.retired:
        raise ConfigError(
            f"the node key in this card was turned away before and cannot come back; at {name}, move keys/node.key and "
            "keys/node.pub elsewhere, run `panfm site init` again, and send the new card"
        )
    for other in others:
        if card.signing_key == other.card.signing_key or card.node_key in (other.card.node_key, *other.retired):
            raise ConfigError(
                f"the keys of this card are those of {other.site}; a site has keys of its own: run `panfm site init` in a folder "
                f"of its own at {name}"
            )


def _next_state(card: SiteCard, before: AdmittedSite | None, by: str, at: str, client_pem: str) -> AdmittedSite:
    if before is None:
        return AdmittedSite(card=card, at=at, by=by, client_pem=client_pem)
    same_node = not before.is_revoked and before.card.node_key == card.node_key
    same_tls = public_key_pem(before.card.tls_request.encode()) == public_key_pem(card.tls_request.encode())
    return AdmittedSite(
        card=card,
        at=at,
        by=by,
        client_pem=client_pem,
        node=before.node if same_node else "",
        registering=before.registering and same_node,
        retired=before.retired if same_node or before.is_revoked else (*before.retired, before.card.node_key),
        revoked_clients=before.revoked_clients if same_tls else (*before.revoked_clients, *_serials(before.client_pem)),
    )


def _serials(client_pem: str) -> tuple[str, ...]:
    return (str(read_certificate(client_pem.encode()).serial),) if client_pem else ()


def _publish_revoked(folder: Path, at: datetime) -> None:
    if read_settings(folder).mutual_tls:
        write_revoked(folder, refused_certificates(folder), at)


def _client_certificate(folder: Path, settings: CoordinatorSettings, card: SiteCard, at: datetime) -> str:
    if not settings.mutual_tls:
        return ""
    authority = own_authority(folder, CLIENT_CA, CLIENT_CA_KEY)
    return issue_client(authority, card.tls_request.encode(), card.site, at).decode()


def _kit(folder: Path, settings: CoordinatorSettings, site: AdmittedSite, bundle_sha256: str, at: datetime) -> SiteKit:
    from panfm.protocol import PROTOCOL_VERSION  # torch comes with it, which the runtime's own processes do without

    key = load_or_make_key(folder / TASK_KEY)
    kit = SiteKit(
        study=settings.study,
        site=site.site,
        address=settings.address,
        coordinator_key=public_hex(key),
        signing_key=site.card.signing_key,
        node_key=site.card.node_key,
        ca_pem=(folder / SERVER_CA).read_text(encoding="ascii"),
        client_pem=site.client_pem,
        bundle_sha256=bundle_sha256,
        panfm_version=panfm.__version__,
        flower_version=FLOWER_VERSION,
        protocol_version=PROTOCOL_VERSION,
        made_at=written(at),
    )
    return signed(kit, key)


def _read(path: Path) -> AdmittedSite:
    try:
        words: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        listed = {name: tuple(words[name]) for name in ("retired", "revoked_clients")}
        site = AdmittedSite(**words | listed | {"card": read_card(words["card"].encode())})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, PanfmError) as error:
        raise DataError(
            f"{path} is damaged; restore it from the backup, or remove it and admit the site again"
        ) from error
    if site.site != path.stem:
        raise DataError(f"{path} holds the card of {site.site}; put it back under its name")
    return site
