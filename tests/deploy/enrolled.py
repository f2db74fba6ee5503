"""A coordinator and its sites on one machine, as the six commands leave them; not a test."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from panfm.coordinator.admitted import admit
from panfm.coordinator.begin import begin_coordinator
from panfm.coordinator.settings import CoordinatorSettings
from panfm.enrolment.card import read_card
from panfm.enrolment.signed_file import to_bytes
from panfm.site.joining import CARD, LocalPorts, join
from panfm.site.onboarding import begin_site
from panfm.site.policy import Policy, PrivacyDemand, PrivacyMode, Public, TaskKind

BUNDLE = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """Folders of both sides."""

    coordinator: Path
    settings: CoordinatorSettings
    coordinator_key: str
    sites: tuple[Path, ...]


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody had a moment ago, all different."""
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def enrol(
    folder: Path, sites: Sequence[str] = ("north",), *, mutual_tls: bool = False, bundle: str = BUNDLE
) -> Enrolled:
    """Begin a coordinator on free ports, and sites that are admitted and have joined."""
    public, superlink, health = free_ports(3)
    settings = CoordinatorSettings(
        study="trial",
        address=f"localhost:{public}",
        mutual_tls=mutual_tls,
        public_port=public,
        superlink_port=superlink,
        health_port=health,
    )
    coordinator = folder / "coordinator"
    key = begin_coordinator(coordinator, settings, None, datetime.now(UTC)).public_key
    places = tuple(enrol_site(coordinator, folder / name, key, bundle) for name in sites)
    return Enrolled(coordinator=coordinator, settings=settings, coordinator_key=key, sites=places)


def enrol_site(coordinator: Path, folder: Path, coordinator_key: str, bundle: str = BUNDLE) -> Path:
    """One site, begun, admitted and joined."""
    now = datetime.now(UTC)
    policy = Policy(
        site=folder.name,
        coordinator_keys=(coordinator_key,),
        organs=("brain",),
        tasks=(TaskKind.pretrain,),
        privacy=PrivacyDemand(mode=PrivacyMode.none),
        public=tuple(Public),
        approved_bundles=(bundle,),
    )
    begin_site(folder, policy, now, lambda: None)
    card = read_card((folder / CARD).read_bytes())
    kit = admit(coordinator, card, by="Ada", at=now, bundle_sha256=bundle)
    runtime, health, forward = free_ports(3)
    join(folder, to_bytes(kit), now, LocalPorts(runtime=runtime, health=health, forward=forward))
    return folder
