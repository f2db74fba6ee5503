"""Keeping the SuperLink's list of nodes as the coordinator's list of sites has it: who is admitted is registered, nobody else is.

Admitting and revoking only change files; this brings the SuperLink after them, whenever it is there, and again after it was
restored from a backup or begun anew. A node that no admitted site has is turned away, whoever registered it: Flower's control
interface asks nobody who he is.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from panfm.coordinator.admitted import AdmittedSite, admitted_sites, changing, write_site
from panfm.coordinator.flower import Node
from panfm.coordinator.settings import SITES, read_settings
from panfm.errors import RunError

UNREGISTERED = "unregistered"
_KNOCK_S = 2.0
_LOOK_EVERY_S = 60.0
"""Each question to Flower's command line costs two to three seconds of processor time."""


class SuperLink(Protocol):
    """What is asked of the SuperLink; `panfm.coordinator.flower.FlowerCommand` does it."""

    def nodes(self) -> list[Node]:
        """All nodes, unregistered ones too. Raises: RunError."""

    def register(self, public_key: Path, name: str) -> int:
        """The number of a new node. Raises: RunError, also when the key was ever registered."""

    def unregister(self, node_id: int) -> None:
        """Turn a node away from now on. Raises: RunError."""


def reconcile(folder: Path, superlink: SuperLink) -> list[str]:
    """Register who is admitted and is not registered, turn away whom no admitted site has.

    Returns: what was done, a line each; also what could not be, with what to do.
    Raises: RunError when the SuperLink does not answer.
    """
    with changing(folder):
        nodes = {node.node_id for node in superlink.nodes() if node.status != UNREGISTERED}
        sites = [_remembered(folder, site, nodes) for site in _settled(folder, nodes)]
        wanted = {int(site.node): site.site for site in sites if site.node}
        strays = [f for node in sorted(nodes - wanted.keys()) for f in _turn_away(superlink, node)]
        return strays + [
            said
            for site in sites
            if not site.node and not site.is_revoked
            for said in _register(folder, superlink, site)
        ]


def is_up(folder: Path) -> bool:
    """Whether something listens where the SuperLink does; asked before a program is started to talk to it."""
    port = read_settings(folder).superlink_port
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_KNOCK_S):
            return True
    except OSError:
        return False


class Registrar:
    """Reconciles whenever the list of sites has changed, and once a minute in case the SuperLink has."""

    def __init__(self, folder: Path, superlink: SuperLink) -> None:
        self._folder, self._superlink = folder, superlink
        self._seen: Sequence[tuple[str, int]] = ()
        self._looked = float("-inf")

    def look(self) -> list[str]:
        """What was done, a line each; cheap while nothing has changed. Raises: RunError when the SuperLink does not answer."""
        if _stamps(self._folder) == self._seen and time.monotonic() - self._looked < _LOOK_EVERY_S:
            return []
        done = reconcile(self._folder, self._superlink)
        self._seen, self._looked = _stamps(self._folder), time.monotonic()
        return done


def _settled(folder: Path, nodes: set[int]) -> list[AdmittedSite]:
    """The sites, once it is known what became of a registration that a crash cut off.

    One site is registered at a time, so that a node that nobody has is that site's, if there is exactly one.
    """
    sites = admitted_sites(folder)
    unknown = nodes - {int(site.node) for site in sites if site.node}
    cut_off = [site for site in sites if site.registering and not site.node]
    if len(cut_off) != 1:
        return sites
    found = str(unknown.pop()) if len(unknown) == 1 else ""
    settled = replace(cut_off[0], node=found, registering=False)
    write_site(folder, settled)
    return [settled if site.site == settled.site else site for site in sites]


def _remembered(folder: Path, site: AdmittedSite, nodes: set[int]) -> AdmittedSite:
    """The site without the node that the SuperLink does not know any more."""
    if not site.node or int(site.node) in nodes:
        return site
    forgotten = replace(site, node="")
    write_site(folder, forgotten)
    return forgotten


def _register(folder: Path, superlink: SuperLink, site: AdmittedSite) -> Iterator[str]:
    write_site(folder, replace(site, registering=True))
    try:
        with TemporaryDirectory() as place:
            key = Path(place) / "node.pub"
            key.write_text(f"{site.card.node_key} {site.site}\n")
            node = superlink.register(key, site.site)
    except RunError as error:
        yield (
            f"{site.site} could not be registered ({error}); if its node key was registered before, let the site make a new one: "
            "deploy/guides/3_coordinator_admit.md"
        )
        return
    write_site(folder, replace(site, node=str(node), registering=False))
    yield f"{site.site} is registered as node {node}"


def _turn_away(superlink: SuperLink, node: int) -> Iterator[str]:
    superlink.unregister(node)
    yield f"node {node} is turned away: no admitted site has it"


def _stamps(folder: Path) -> list[tuple[str, int]]:
    return sorted((path.name, path.stat().st_mtime_ns) for path in (folder / SITES).glob("*.json"))
