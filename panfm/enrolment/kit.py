"""The kit of a site: where the study is, what its certificate is checked against, and for whom the kit was made; signed by the
coordinator with the key that signs its tasks.

There is nothing secret in it. It fits one site and one pair of keys, so that a kit that went astray lets nobody in.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from panfm.enrolment.certificates import read_certificate
from panfm.enrolment.names import check_key, check_moment, check_name, check_version, split_address
from panfm.enrolment.node_key import check_public_node_key
from panfm.enrolment.signed_file import SignedFile, read_signed


@dataclass(frozen=True, kw_only=True)
class SiteKit(SignedFile):
    """What a coordinator gives to an admitted site."""

    CALLED: ClassVar[str] = "site kit"
    SIGNER: ClassVar[str] = "coordinator_key"

    study: str
    site: str
    address: str
    """What the site dials, host:port."""
    coordinator_key: str
    """Public key that signs the study's tasks, and this kit."""
    signing_key: str
    """The site's, as admitted."""
    node_key: str
    """The site's, as admitted."""
    ca_pem: str
    """Authorities of the proxy's certificate; more than one while they change."""
    client_pem: str
    """What the site shows to the proxy; empty without mutual TLS."""
    bundle_sha256: str
    """The code that the study means to send; the site reviews and approves it by itself."""
    panfm_version: str
    flower_version: str
    protocol_version: int
    made_at: str
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        check_name(self.study, "study")
        check_name(self.site, "site")
        split_address(self.address)
        check_key(self.coordinator_key)
        check_key(self.signing_key)
        check_public_node_key(self.node_key)
        read_certificate(self.ca_pem.encode())
        if self.client_pem:
            read_certificate(self.client_pem.encode())
        if not re.fullmatch(r"[0-9a-f]{64}", self.bundle_sha256):
            raise ValueError("bundle_sha256 is no digest")
        check_version(self.panfm_version)
        check_version(self.flower_version)
        check_moment(self.made_at)


def read_kit(content: bytes) -> SiteKit:
    """A kit as it came; whether its coordinator is one that the site knows is for the site to say.

    Raises: ProtocolError when it is not, to the byte, what a coordinator made.
    """
    return read_signed(content, SiteKit)
