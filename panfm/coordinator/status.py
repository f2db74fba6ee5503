"""How a study stands: its sites, its certificates, its runs, and which organ is covered by whom.

Read from the coordinator's folder alone; only whether a site is connected now is asked of the SuperLink, where it is up.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from panfm.coordinator.admitted import AdmittedSite, admitted_sites
from panfm.coordinator.flower import Node
from panfm.coordinator.settings import (
    CLIENT_CA,
    LOOPBACK,
    RUNS,
    SERVER,
    SERVER_CA,
    CoordinatorSettings,
    read_settings,
)
from panfm.coordinator.studies import RUN_LOCK, WANTED_FILE
from panfm.coordinator.submissions import submissions, was_given_up
from panfm.enrolment.certificates import read_certificate
from panfm.lock import is_held
from panfm.reporting.follow import RECORD
from panfm.reporting.history import RunHistory, read_history

NEVER, NOW = "never", "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expiry:
    """A certificate and its end."""

    name: str
    not_after: str
    days_left: int
    is_expiring: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """One site that was ever admitted."""

    site: str
    state: str
    """revoked | not registered | registered (never seen) | online | offline | unknown (the SuperLink was not asked)."""
    organs: tuple[str, ...]
    """What it offered when it last joined a run, else what its card says."""
    last_seen: str
    """now, never, a moment in UTC as the SuperLink has it, or empty where that was not asked."""
    panfm_version: str
    """As told when it last joined a run, else by its card."""
    torch_version: str
    device: str
    last_run: str
    """The run that it joined last; empty where there is none."""
    revoked: str
    """Why, where it is."""
    certificate: Expiry | None
    """Of mutual TLS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run of the study."""

    run: str
    state: str
    """complete, incomplete or stopped, as recorded; running, waiting (nobody works on it just now) or given up."""
    rounds_done: int
    rounds: int
    reason: str
    coverage: dict[str, int]
    """Organ -> sites whose training of it counted in the run's latest window of rounds."""
    last_event: str
    """UTC, ISO 8601."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorStatus:
    """The study at one moment."""

    study: str
    address: str
    superlink: str
    """up | down."""
    certificates: tuple[Expiry, ...]
    sites: tuple[SiteStatus, ...]
    runs: tuple[RunStatus, ...]
    offered: dict[str, tuple[str, ...]]
    """Organ -> admitted sites that offer it."""


def coordinator_status(folder: Path, nodes: Sequence[Node] | None, now: datetime) -> CoordinatorStatus:
    """How the study stands.

    Args:
        nodes: what the SuperLink lists; None where it is not up.
    Raises: ConfigError or DataError when the folder is not a coordinator's, or a file in it is damaged.
    """
    settings = read_settings(folder)
    histories = _histories(folder)
    known = {str(node.node_id): node for node in nodes} if nodes is not None else None
    sites = [_site(site, known, histories, now) for site in admitted_sites(folder)]
    offered: dict[str, tuple[str, ...]] = {}
    for site in (site for site in sites if not site.revoked):
        for organ in site.organs:
            offered[organ] = (*offered.get(organ, ()), site.site)
    return CoordinatorStatus(
        study=settings.study,
        address=settings.address,
        superlink="down" if nodes is None else "up",
        certificates=tuple(_certificates(folder, settings, now)),
        sites=tuple(sites),
        runs=tuple(_runs(folder, histories)),
        offered=offered,
    )


def as_json(status: CoordinatorStatus) -> dict[str, Any]:
    """The status for other programs."""
    return asdict(status)


def lines_of(status: CoordinatorStatus) -> Iterator[str]:
    """The status for people."""
    yield f"study {status.study} at {status.address}; the SuperLink is {status.superlink}"
    yield ""
    yield "sites" if status.sites else "sites: none is admitted yet (panfm coordinator admit)"
    for site in status.sites:
        yield f"  {site.site:<20} {site.state:<15} {_seen(site):<32} {', '.join(site.organs)}"
        yield f"  {'':<20} {_told(site)}"
    yield ""
    yield "runs" if status.runs else "runs: none yet (panfm coordinator run)"
    for run in status.runs:
        covered = ", ".join(f"{organ} {sites}" for organ, sites in run.coverage.items())
        yield f"  {run.run:<28} {run.state:<11} round {run.rounds_done} of {run.rounds}" + _after(
            "; covered by sites: ", covered
        )
        if run.reason:
            yield f"  {'':<28} {run.reason}"
    if status.offered:
        yield ""
        yield "organs offered: " + "; ".join(
            f"{organ} by {', '.join(sites)}" for organ, sites in status.offered.items()
        )
    yield ""
    yield from warnings_of(status) or ["no certificate ends within 30 days"]


def warnings_of(status: CoordinatorStatus) -> list[str]:
    """What must be renewed soon, and how."""
    own = [
        (c, "panfm coordinator renew (given certificates: renew them where they come from)")
        for c in status.certificates
    ]
    theirs = [
        (site.certificate, f"admit {site.site} again with its card, and let it join with the new kit")
        for site in status.sites
        if site.certificate is not None and not site.revoked
    ]
    return [
        f"{c.name} {'ran out' if c.days_left < 0 else f'ends in {c.days_left} days'} ({c.not_after}): {what}"
        for c, what in [*own, *theirs]
        if c.is_expiring
    ]


def _seen(site: SiteStatus) -> str:
    return f"seen {site.last_seen}" if site.last_seen else ""


def _told(site: SiteStatus) -> str:
    words = f"panfm {site.panfm_version}" + _after(", torch ", site.torch_version) + _after(", trains on ", site.device)
    return words + _after("; last joined ", site.last_run) + _after("; revoked: ", site.revoked)


def _after(label: str, text: str) -> str:
    return label + text if text else ""


def _site(
    site: AdmittedSite, nodes: dict[str, Node] | None, histories: dict[str, RunHistory], now: datetime
) -> SiteStatus:
    joined = [(h.last_time, name, h.joined[site.site]) for name, h in histories.items() if site.site in h.joined]
    _, run, told = max(joined, default=("", "", None), key=lambda one: one[0])
    node = (nodes or {}).get(site.node)
    return SiteStatus(
        site=site.site,
        state=_state(site, nodes),
        organs=tuple(told.organs) if told else site.card.organs,
        last_seen="" if nodes is None else _last_seen(node),
        panfm_version=told.panfm_version if told else site.card.panfm_version,
        torch_version=told.torch_version if told else "",
        device=told.device if told else "",
        last_run=run,
        revoked=_after(f"{site.revoked_at} ", site.reason) if site.is_revoked else "",
        certificate=_expiry(f"the certificate of {site.site}", site.client_pem.encode(), now)
        if site.client_pem
        else None,
    )


def _state(site: AdmittedSite, nodes: dict[str, Node] | None) -> str:
    if site.is_revoked:
        return "revoked"
    if nodes is None:
        return "unknown"
    node = nodes.get(site.node)
    return node.status if node is not None and node.status != "unregistered" else "not registered"


def _last_seen(node: Node | None) -> str:
    if node is None:
        return NEVER
    if node.status == "online":
        return NOW
    return max(_moment(node.offline_at), _moment(node.online_at)) or NEVER


def _moment(text: str) -> str:
    return "" if text == "N/A" else text  # Flower's word for a moment that has not been


def _certificates(folder: Path, settings: CoordinatorSettings, now: datetime) -> Iterator[Expiry]:
    yield _expiry("the proxy's certificate", (folder / SERVER).read_bytes(), now)
    yield _expiry("its authority", (folder / SERVER_CA).read_bytes(), now)
    yield _expiry("the SuperLink's own certificate", (folder / LOOPBACK).read_bytes(), now)
    if settings.mutual_tls:
        yield _expiry("the authority of the sites' certificates", (folder / CLIENT_CA).read_bytes(), now)


def _expiry(name: str, pem: bytes, now: datetime) -> Expiry:
    facts = read_certificate(pem)
    return Expiry(
        name=name,
        not_after=facts.not_after.isoformat(timespec="seconds"),
        days_left=facts.days_left(now),
        is_expiring=facts.is_expiring(now),
    )


def _histories(folder: Path) -> dict[str, RunHistory]:
    """Run -> what its record tells, for the runs that have one."""
    records = sorted((folder / RUNS).glob(f"*/{RECORD}"))
    return {path.parent.name: read_history(path.parent) for path in records}


def _runs(folder: Path, histories: dict[str, RunHistory]) -> Iterator[RunStatus]:
    wanted = {path.parent.name for path in (folder / RUNS).glob(f"*/{WANTED_FILE}")}
    for name in sorted(wanted | histories.keys()):
        history = histories.get(name)
        rounds = history.averages if history else {}
        latest = max(rounds, default=0)
        yield RunStatus(
            run=name,
            state=_run_state(folder / RUNS / name, history),
            rounds_done=latest,
            rounds=history.start.rounds if history and history.start else 0,
            reason=history.finish.reason if history and history.finish else "",
            coverage=dict(rounds[latest].coverage) if latest else {},
            last_event=history.last_time if history else "",
        )


def _run_state(run_folder: Path, history: RunHistory | None) -> str:
    if is_held(run_folder / RUN_LOCK):
        return "running"
    if history is not None and history.finish is not None:
        return history.finish.status
    return "given up" if was_given_up(submissions(run_folder)) else "waiting"
