"""A study between two folders, made by the same calls as the commands make; a SuperLink that keeps its list as Flower's does."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import atexit
import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from panfm.coordinator.admitted import admit, kit_path
from panfm.coordinator.begin import begin_coordinator, write_flower_config
from panfm.coordinator.flower import Node
from panfm.coordinator.settings import CoordinatorSettings
from panfm.enrolment.card import SiteCard, read_card
from panfm.enrolment.kit import SiteKit
from panfm.errors import RunError
from panfm.site.onboarding import begin_site
from panfm.site.policy_template import closed_policy

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
BUNDLE = "5e" * 32
SETTINGS = CoordinatorSettings(study="pan", address="localhost:8443")


def made_coordinator(folder: Path, settings: CoordinatorSettings = SETTINGS, now: datetime = NOW) -> str:
    """A coordinator's folder; returns the public key."""
    return begin_coordinator(folder, settings, None, now).public_key


def made_site(folder: Path, name: str, *coordinator_keys: str, now: datetime = NOW) -> SiteCard:
    """A site's folder; returns its card."""
    begin_site(folder, closed_policy(name, coordinator_keys, ("brain", "liver")), now, lambda: None)
    return read_card((folder / "site_card.json").read_bytes())


def admitted(coordinator: Path, card: SiteCard, at: datetime = NOW) -> SiteKit:
    """The kit of a site that was admitted."""
    return admit(coordinator, card, by="anna", at=at, bundle_sha256=BUNDLE)


@dataclass(frozen=True)
class MadeStudy:
    """A coordinator and one site that it admitted."""

    coordinator: Path
    site: Path
    public_key: str
    card: SiteCard
    kit: SiteKit

    @property
    def kit_content(self) -> bytes:
        """The kit as it travels."""
        return kit_path(self.coordinator, self.card.site).read_bytes()


def made_study(folder: Path, settings: CoordinatorSettings = SETTINGS, now: datetime = NOW) -> MadeStudy:
    """A study in which `north` is admitted; the same keys for the same settings and moment."""
    made = _template(settings, now)
    for name in ("coordinator", "north"):
        shutil.copytree(made.coordinator.parent / name, folder / name)
    write_flower_config(folder / "coordinator")
    return replace(made, coordinator=folder / "coordinator", site=folder / "north")


@cache
def _template(settings: CoordinatorSettings, now: datetime) -> MadeStudy:
    """Made once, for it costs two tenths of a second."""
    folder = Path(mkdtemp(prefix="panfm-made-study-"))
    atexit.register(shutil.rmtree, folder)
    public_key = made_coordinator(folder / "coordinator", settings, now)
    card = made_site(folder / "north", "north", public_key, now=now)
    kit = admitted(folder / "coordinator", card, now)
    return MadeStudy(folder / "coordinator", folder / "north", public_key, card, kit)


@dataclass
class PretendSuperLink:
    """Its list of nodes, with the rule of Flower's database: a key is taken once, whatever became of its node."""

    listed: dict[int, Node] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    is_down: bool = False
    asked: list[str] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        self._note("list")
        return list(self.listed.values())

    def register(self, public_key: Path, name: str) -> int:
        self._note(f"register {name}")
        key = " ".join(public_key.read_text().split()[:2])
        if key in self.keys:
            raise RunError("Flower refused `flwr supernode`: public key already in use")
        node = 1000 + len(self.keys)
        self.keys[key], self.names[node] = node, name
        self.listed[node] = Node(node_id=node, status="registered", online_at="N/A", offline_at="N/A")
        return node

    def unregister(self, node_id: int) -> None:
        self._note(f"unregister {node_id}")
        self.listed[node_id] = replace(self.listed[node_id], status="unregistered")

    @property
    def let_in(self) -> dict[str, int]:
        """Names of the nodes that are not turned away, and their numbers."""
        return {self.names[n]: n for n, node in self.listed.items() if node.status != "unregistered"}

    def _note(self, what: str) -> None:
        if self.is_down:
            raise RunError("`flwr supernode` did not answer")
        self.asked.append(what)
