"""Certificates and keys that a site must not take, for the fault matrix."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from panfm.enrolment.certificates import Issued, issue_server, make_authority
from panfm.enrolment.node_key import new_node_key, public_node_key
from tests.containers.engine import OWNER

KINDS = ("foreign", "self-signed", "expired", "wrong-name")


def write_wrong(kind: str, tls: Path, secrets: Path) -> None:
    """Put a wrong certificate and its key where the proxy reads them, in place: the proxy only has to load them again."""
    made = _wrong(
        kind, Issued(certificate_pem=(tls / "ca.pem").read_bytes(), key_pem=(secrets / "ca.key").read_bytes())
    )
    (tls / "server.pem").write_bytes(made.certificate_pem)
    (tls / "server.key").write_bytes(made.key_pem)


def _wrong(kind: str, own: Issued) -> Issued:
    now, name = datetime.now(UTC), "coordinator"
    match kind:
        case "foreign":
            return issue_server(make_authority("Somebody else", now), [name], now)
        case "self-signed":
            return make_authority(name, now)
        case "expired":
            return issue_server(own, [name], now - timedelta(days=40), days=30)
        case "wrong-name":
            return issue_server(own, ["elsewhere.example"], now)
    raise ValueError(kind)


def write_node_key(keys: Path) -> None:
    """A node key that nobody admitted, in a site's folder of keys."""
    key = new_node_key()
    for name, content in (("node.key", key), ("node.pub", public_node_key(key).encode() + b"\n")):
        (keys / name).write_bytes(content)
        (keys / name).chmod(0o600)
        os.chown(keys / name, OWNER, OWNER)
