"""The card of a site: who it is, with which keys it signs and connects, and what it images; signed with the site's own key.

The signature shows that one hand made all of it. Whose hand that is, only a person can tell: the fingerprint of the signing key
is compared by telephone before the card is admitted.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from panfm.enrolment.certificates import public_key_pem
from panfm.enrolment.names import check_key, check_moment, check_name, check_version
from panfm.enrolment.node_key import check_public_node_key
from panfm.enrolment.signed_file import SignedFile, read_signed
from panfm.organs import check_organ_names


@dataclass(frozen=True, kw_only=True)
class SiteCard(SignedFile):
    """What a site gives to the coordinator."""

    CALLED: ClassVar[str] = "site card"
    SIGNER: ClassVar[str] = "signing_key"

    site: str
    organs: tuple[str, ...]
    """What its policy offers."""
    signing_key: str
    """Public Ed25519 key, 64 hexadecimal digits."""
    node_key: str
    """Public key of its SuperNode, OpenSSH's format in one line."""
    tls_request: str
    """Request for a client certificate (PEM); used where the study has mutual TLS."""
    panfm_version: str
    flower_version: str
    protocol_version: int
    made_at: str
    """UTC, ISO 8601."""

    def __post_init__(self) -> None:
        check_name(self.site, "site")
        check_organ_names(self.organs)
        check_key(self.signing_key)
        check_public_node_key(self.node_key)
        public_key_pem(self.tls_request.encode())
        check_version(self.panfm_version)
        check_version(self.flower_version)
        check_moment(self.made_at)


def read_card(content: bytes) -> SiteCard:
    """A card as it came. Raises: ProtocolError when it is not, to the byte, what a site made."""
    return read_signed(content, SiteCard)
