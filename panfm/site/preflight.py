"""What must be right before a site's service is started, looked at one by one; each line says what to do where it is not.

Nothing is changed, nothing is sent but two questions to the coordinator (`panfm.site.study_door`), and nobody is asked for a
passphrase: the service will not be able to ask either.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

import torch

import panfm
from panfm.data.store import PreparedStore
from panfm.enrolment.certificates import CertificateFacts, read_certificate
from panfm.errors import PanfmError
from panfm.protocol import PROTOCOL_VERSION
from panfm.signing import fingerprint
from panfm.site.approvals import is_approved
from panfm.site.audit_log import inspect_folder
from panfm.site.bundles import FLOWER_VERSION
from panfm.site.free_memory import free_memory_gib
from panfm.site.identity import SiteIdentity, read_public_key
from panfm.site.joining import (
    CA,
    CLIENT,
    LOCAL,
    LOCAL_KEY,
    NODE_KEY,
    SECRET,
    TLS_KEY,
    StudyLink,
    check_joined,
    read_link,
    read_node_key,
)
from panfm.site.policy import PrivacyMode, Public
from panfm.site.policy_file import read_policy
from panfm.site.study_door import Answered, is_registered, knock

LEAST_DISK_GIB = 5.0
"""For a base model (350 MB as fp32): its task, the answer, residual and moments of two rounds, and logs."""
MOST_AHEAD_S, MOST_BEHIND_S = 4.0, 300.0
"""Flower 1.41 refuses a SuperNode whose clock is 5 s ahead or 305 s behind, and the SuperNode then ends."""
_UNEASY_S = 2.0
_PRIVATE = ("keys/signing.key", NODE_KEY, TLS_KEY, SECRET, LOCAL_KEY)
_GIB = 2**30


class Verdict(Enum):
    """What a look found."""

    ok = "ok"
    warn = "warn"
    """It works today."""
    fail = "fail"
    """It will not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    says: str
    """What was found and, unless it is ok, what to do."""


Finding = tuple[Verdict, str]
Look = Callable[[Path, datetime], Iterator[Finding]]


def preflight(folder: Path, now: datetime) -> list[Check]:
    """Look at everything; what cannot be looked at has failed."""
    return [check for name, look in _LOOKS.items() for check in _checks(name, look, folder, now)]


def line_of(check: Check) -> str:
    """A check for people."""
    return f"{check.verdict.name:<4}  {check.name:<12}  {check.says}"


def _checks(name: str, look: Look, folder: Path, now: datetime) -> Iterator[Check]:
    try:
        for verdict, says in look(folder, now):
            yield Check(name=name, verdict=verdict, says=says)
    except PanfmError as error:
        yield Check(name=name, verdict=Verdict.fail, says=str(error))
    except OSError as error:
        says = f"{error.filename} cannot be read ({error.strerror}): run this as the user of the service"
        yield Check(name=name, verdict=Verdict.fail, says=says)


def _policy(folder: Path, _now: datetime) -> Iterator[Finding]:
    policy = read_policy(folder)
    if not policy.bounds and not policy.approved_recipes:
        yield Verdict.fail, "it answers no task: fill in `bounds` or `approved_recipes`"
    if (
        policy.privacy.mode is PrivacyMode.none
        and Public.updates not in policy.public
        and policy.privacy.budget is None
    ):
        yield Verdict.fail, "it lets no update out: name `updates` under `public`, or demand privacy with a budget"
    yield (
        Verdict.ok,
        f"{policy.site} offers {', '.join(policy.organs)} for {', '.join(kind.name for kind in policy.tasks)}",
    )


def _keys(folder: Path, _now: datetime) -> Iterator[Finding]:
    for name in _PRIVATE:
        if (folder / name).exists() and (mode := (folder / name).stat().st_mode & 0o777) & 0o077:
            yield Verdict.fail, f"{name} can be used by others (mode {mode:o}): run `chmod 600 {folder / name}`"
    identity, node_key = SiteIdentity.open(folder), read_node_key(folder)
    if identity.public_key != read_public_key(folder):
        yield Verdict.fail, "keys/signing.pub is not the public half of keys/signing.key: restore both from the backup"
    yield Verdict.ok, f"signing key {identity.fingerprint}, node key ...{node_key[-12:]}"


def _audit_log(folder: Path, _now: datetime) -> Iterator[Finding]:
    found = inspect_folder(folder, read_public_key(folder))
    if found.fault is not None:
        yield (
            Verdict.fail,
            "it is not as it was written: run `panfm site audit verify`, and start nothing before it is explained",
        )
        return
    yield Verdict.ok, f"whole, {len(found.entries)} lines"


def _store(folder: Path, _now: datetime) -> Iterator[Finding]:
    policy, store = read_policy(folder), PreparedStore.open(folder / "store")
    counts = {o: len({entry.subject for entry in store.entries if entry.organ == o}) for o in policy.organs}
    few = [organ for organ, number in counts.items() if number < policy.min_subjects_per_organ]
    told = ", ".join(f"{organ} {number}" for organ, number in counts.items())
    if len(few) == len(counts) or len({entry.subject for entry in store.entries}) < policy.min_subjects:
        yield (
            Verdict.fail,
            f"too few subjects to train ({told}; policy.yaml: min_subjects {policy.min_subjects}, min_subjects_per_organ "
            f"{policy.min_subjects_per_organ}): prepare more scans, or decide on smaller numbers",
        )
    elif few:
        yield Verdict.warn, f"subjects: {told}; not offered for want of subjects: {', '.join(few)}: prepare more scans"
    else:
        yield Verdict.ok, f"subjects: {told}"


def _disk(folder: Path, _now: datetime) -> Iterator[Finding]:
    free_gib = shutil.disk_usage(folder).free / _GIB
    if free_gib < LEAST_DISK_GIB:
        yield Verdict.fail, f"{free_gib:.1f} GiB free, {LEAST_DISK_GIB:g} wanted: make room where {folder} lies"
    else:
        yield Verdict.ok, f"{free_gib:.1f} GiB free"


def _device(folder: Path, _now: datetime) -> Iterator[Finding]:
    policy = read_policy(folder)
    if not policy.device.startswith("cuda"):
        seen = "; a GPU is there, and policy.yaml does not use it" if torch.cuda.is_available() else ""
        yield Verdict.ok, f"trains on the processor, as policy.yaml says{seen}"
    elif not torch.cuda.is_available():
        yield (
            Verdict.fail,
            f"policy.yaml wants {policy.device}, and torch {torch.__version__} sees no GPU: give the service the GPU (driver, "
            "container option), install the CUDA build of torch, or set device: cpu",
        )
    elif (number := torch.device(policy.device).index or 0) >= torch.cuda.device_count():
        yield (
            Verdict.fail,
            f"policy.yaml wants {policy.device}, and there are {torch.cuda.device_count()} GPUs: correct `device`",
        )
    else:
        facts = torch.cuda.get_device_properties(number)
        yield Verdict.ok, f"{policy.device} is a {facts.name} with {facts.total_memory / _GIB:.0f} GiB"


def _memory(folder: Path, _now: datetime) -> Iterator[Finding]:
    policy = read_policy(folder)
    free_gib = free_memory_gib(policy.device)
    if free_gib is None:
        yield Verdict.fail, f"the free memory of {policy.device} is not known: see the line about the device"
    elif free_gib < policy.min_free_memory_gib:
        wanted = f"{policy.min_free_memory_gib:g} wanted by policy.yaml"
        yield (
            Verdict.fail,
            f"{free_gib:.1f} GiB of {policy.device} free, {wanted}: end what else runs there, or decide on less",
        )
    else:
        yield Verdict.ok, f"{free_gib:.1f} GiB of {policy.device} free"


def _kit(folder: Path, _now: datetime) -> Iterator[Finding]:
    kit = check_joined(folder)
    yield Verdict.ok, f"of {kit.made_at}, signed by {fingerprint(kit.coordinator_key)}, for the keys of this site"


def _versions(folder: Path, _now: datetime) -> Iterator[Finding]:
    link = read_link(folder)
    if link.protocol_version != PROTOCOL_VERSION or link.panfm_version != panfm.__version__:
        yield (
            Verdict.fail,
            f"the coordinator has panfm {link.panfm_version} (protocol {link.protocol_version}), this site {panfm.__version__} "
            f"(protocol {PROTOCOL_VERSION}): install the coordinator's release, or ask for a kit of the new one",
        )
        return
    if (found := _installed("flwr")) != FLOWER_VERSION or link.flower_version != FLOWER_VERSION:
        yield (
            Verdict.fail,
            f"Flower {FLOWER_VERSION} is wanted, found {found or 'none'} here and {link.flower_version} at the coordinator: "
            "install panfm[federation] with constraints.txt",
        )
        return
    yield (
        Verdict.ok,
        f"panfm {panfm.__version__}, protocol {PROTOCOL_VERSION}, Flower {FLOWER_VERSION}, as the coordinator has",
    )


def _bundle(folder: Path, _now: datetime) -> Iterator[Finding]:
    link, policy = read_link(folder), read_policy(folder)
    if is_approved(folder, link.bundle_sha256, policy.approved_bundles, read_public_key(folder)):
        yield Verdict.ok, f"the study's code {link.bundle_sha256[:12]} is approved"
    else:
        yield (
            Verdict.fail,
            f"the study's code {link.bundle_sha256[:12]} is not approved here: read it with `panfm site review`, then run "
            "`panfm site approve`",
        )


def _certificates(folder: Path, now: datetime) -> Iterator[Finding]:
    link = read_link(folder)
    yield _validity(
        "the study's authority", _read(folder / CA), now, "ask the coordinator for a new kit, and join with it"
    )
    yield _validity(
        "this site's own", _read(folder / LOCAL), now, f"remove {folder / LOCAL}, and join again with the same kit"
    )
    if link.mutual_tls:
        shown = _read(folder / CLIENT)
        yield _validity("what this site shows", shown, now, "ask the coordinator for a new kit, and join with it")


def _validity(name: str, facts: CertificateFacts, now: datetime, remedy: str) -> Finding:
    until = f"{facts.not_after:%Y-%m-%d}"
    if now < facts.not_before:
        return (
            Verdict.fail,
            f"{name} is good from {facts.not_before:%Y-%m-%d %H:%M} UTC on: correct this machine's clock",
        )
    if now > facts.not_after:
        return Verdict.fail, f"{name} ran out on {until}: {remedy}"
    if facts.is_expiring(now):
        return Verdict.warn, f"{name} ends on {until}, in {facts.days_left(now)} days: {remedy}"
    return Verdict.ok, f"{name} is good until {until}"


def _door(folder: Path, now: datetime) -> Iterator[Finding]:
    link: StudyLink = read_link(folder)
    answered = knock(folder, link)
    yield Verdict.ok, f"{link.address} answers with {answered.tls_version}, and its certificate names it"
    yield _validity(
        "its certificate", answered.certificate, now, "the coordinator must renew it (panfm coordinator renew)"
    )
    yield (clock := _clock(answered))
    if clock[0] is not Verdict.fail:  # else the SuperLink refuses to hear who asks
        yield _registration(folder, link)


def _registration(folder: Path, link: StudyLink) -> Finding:
    if is_registered(folder, link):
        return Verdict.ok, "its SuperLink knows this site's node key"
    return (
        Verdict.fail,
        "its SuperLink does not know this site's node key, or turned it away: ask the coordinator what `panfm coordinator "
        "status` says of this site; if it was revoked, it needs a new node key (deploy/guides/2_site_init.md)",
    )


def _clock(answered: Answered) -> Finding:
    if (ahead_s := answered.ahead_s) is None:
        return Verdict.warn, "the coordinator told no time: compare the clocks of both machines by hand"
    off = f"this machine's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the coordinator's"
    if ahead_s > MOST_AHEAD_S or -ahead_s > MOST_BEHIND_S:
        return Verdict.fail, f"{off}, and Flower takes 5 s ahead and 305 s behind: set the clock by NTP (timedatectl)"
    if abs(ahead_s) > _UNEASY_S:
        return Verdict.warn, f"{off}: set the clock by NTP (timedatectl) before it is too far off"
    return Verdict.ok, "both clocks agree to about a second"


_LOOKS: dict[str, Look] = {
    "policy": _policy,
    "keys": _keys,
    "audit log": _audit_log,
    "scans": _store,
    "disk": _disk,
    "device": _device,
    "memory": _memory,
    "kit": _kit,
    "versions": _versions,
    "code": _bundle,
    "certificates": _certificates,
    "coordinator": _door,
}


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _read(path: Path) -> CertificateFacts:
    return read_certificate(path.read_bytes() if path.exists() else b"")
