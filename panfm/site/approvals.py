"""Which code a hospital has approved: one record per bundle on its own disk, with who, when, and the bundle itself.

    approvals/<sha256>/approval.json   digest, person, time; signed with the site's key
    approvals/<sha256>/bundle.fab      what was approved, so that the next one can be compared with it

An approval is of one exact file: its full SHA-256. Removing its folder withdraws it.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.durable import write_folder
from panfm.errors import DataError, ProtocolError
from panfm.signing import is_signed_by, sign
from panfm.site.bundles import Bundle, read_bundle

APPROVALS = "approvals"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """That a person of the site has read a bundle and lets it run."""

    bundle: str
    """SHA-256 of the bundle, 64 hexadecimal digits."""
    by: str
    """Who approved it."""
    at: str
    """When, in UTC, as ISO 8601 with microseconds."""
    signature: str = ""
    """Hex signature of the site's key over the rest."""

    def digest(self) -> str:
        """What is signed: SHA-256 over everything but the signature."""
        words = {name: value for name, value in asdict(self).items() if name != "signature"}
        return hashlib.sha256(b"panfm approval\n" + json.dumps(words, sort_keys=True).encode()).hexdigest()


def approve(folder: Path, bundle: Bundle, *, by: str, at: datetime, key: Ed25519PrivateKey) -> Approval:
    """Record an approval in a site's folder; after this returns it survives any crash.

    Approving anew replaces the record.
    """
    moment = at.astimezone(UTC).isoformat(timespec="microseconds")
    unsigned = Approval(bundle=bundle.digest, by=by, at=moment)
    approval = replace(unsigned, signature=sign(key, unsigned.digest()))

    def fill(draft: Path) -> None:
        (draft / "bundle.fab").write_bytes(bundle.content)
        (draft / "approval.json").write_text(json.dumps(asdict(approval), indent=1, sort_keys=True) + "\n")

    write_folder(_place(folder, bundle.digest), fill)
    return approval


def is_approved(folder: Path, digest: str, named_by_policy: Collection[str], public_key: str) -> bool:
    """Whether the site lets this bundle run: its policy names it, or a person's approval, signed by the site, lies there.

    Raises: DataError when there is a record that cannot be read.
    """
    if not _DIGEST.fullmatch(digest):
        return False
    if digest in named_by_policy:
        return True
    approval = _read(_place(folder, digest)) if _place(folder, digest).is_dir() else None
    return approval is not None and _counts(approval, digest, public_key)


def approvals(folder: Path, public_key: str) -> list[Approval]:
    """The approvals that count, oldest first. Raises: DataError when a record cannot be read."""
    places = [place for place in (folder / APPROVALS).glob("*") if _DIGEST.fullmatch(place.name)]
    read = [(place.name, _read(place)) for place in places]
    counting = [approval for digest, approval in read if _counts(approval, digest, public_key)]
    return sorted(counting, key=lambda approval: approval.at)


def approved_bundle(folder: Path, approval: Approval) -> Bundle:
    """The bundle that was approved. Raises: DataError when the kept file is gone or is not what was approved."""
    try:
        bundle = read_bundle((_place(folder, approval.bundle) / "bundle.fab").read_bytes())
    except (OSError, ProtocolError) as error:
        raise DataError(_damaged(approval.bundle)) from error
    if bundle.digest != approval.bundle:
        raise DataError(_damaged(approval.bundle))
    return bundle


def _counts(approval: Approval, digest: str, public_key: str) -> bool:
    return approval.bundle == digest and is_signed_by(public_key, approval.digest(), approval.signature)


def _place(folder: Path, digest: str) -> Path:
    return folder / APPROVALS / digest


def _read(place: Path) -> Approval:
    try:
        words = json.loads((place / "approval.json").read_text())
        approval = Approval(**words)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(_damaged(place.name)) from error
    if not all(isinstance(word, str) for word in asdict(approval).values()):
        raise DataError(_damaged(place.name))
    return approval


def _damaged(digest: str) -> str:
    return f"the approval of bundle {digest[:12]} is damaged; remove its folder below {APPROVALS}/ and approve the bundle again"
