"""`panfm site review` and `panfm site approve`: read the code that a study sends, and let exactly this code run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.site.bundles import Bundle

_BUNDLE = typer.Argument(help="The bundle: a .fab file from the coordinator, or of `panfm bundle`.")
_FOLDER = typer.Option(help="The site's folder.")


def review(bundle: Annotated[Path, _BUNDLE], folder: Annotated[Path, _FOLDER] = Path()) -> None:
    """Show a bundle's files, and how they differ from the bundle that was approved last. Nothing of it is run."""
    from panfm.site.approvals import approvals, approved_bundle
    from panfm.site.bundles import SITE_PACKAGE, difference
    from panfm.site.identity import read_public_key

    sent = _read(bundle)
    for name, text in sent.files.items():
        print(f"{len(text.encode()):>9,}  {name}")
    if sent.not_loaded():
        print(f"\nA site imports {SITE_PACKAGE} only; not loaded from this bundle: {', '.join(sent.not_loaded())}")
    given = approvals(folder, read_public_key(folder))
    if any(approval.bundle == sent.digest for approval in given):
        print(f"\nThis bundle is approved.\nSHA-256 {sent.digest}")
        return
    before = approved_bundle(folder, given[-1]).files if given else {}
    print(
        f"\nDifference to {f'{given[-1].bundle} of {given[-1].at[:10]}' if given else 'nothing: no bundle is approved yet'}:"
    )
    for line in difference(before, sent.files):
        print(line)
    print(f"\nSHA-256 {sent.digest}")


def approve(
    bundle: Annotated[Path, _BUNDLE],
    folder: Annotated[Path, _FOLDER] = Path(),
    sha256: Annotated[
        str, typer.Option(help="Approve only if the bundle has this SHA-256, as review printed it.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who approves; the name of this account if not given.")] = "",
) -> None:
    """Let a bundle run at this site, and record who decided it and when."""
    from panfm.cli.site_init import ask_passphrase
    from panfm.site.approvals import approve as record
    from panfm.site.audit_log import AuditLog
    from panfm.site.identity import SiteIdentity

    sent = _read(bundle)
    if sha256 and sha256.lower() != sent.digest:
        raise ConfigError(f"expected the bundle {sha256}, and {bundle} is {sent.digest}; review this one before")
    key = SiteIdentity.open(folder, ask_passphrase).signing_key
    who = by or getpass.getuser()
    AuditLog.open(folder, key).append("bundle_approved", {"bundle": sent.digest, "by": who})  # before it counts
    approval = record(folder, sent, by=who, at=datetime.now(UTC), key=key)
    print(f"approved by {approval.by} at {approval.at}: {sent.digest}")


def _read(path: Path) -> Bundle:
    from panfm.site.bundles import MAX_BUNDLE_BYTES, read_bundle

    try:
        with path.open("rb") as file:
            return read_bundle(file.read(MAX_BUNDLE_BYTES + 1))
    except OSError as error:
        raise ConfigError(
            f"the bundle {path} cannot be read ({error.strerror}); give the path of a .fab file"
        ) from error
