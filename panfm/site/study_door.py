"""Knocking at the study's door: what the coordinator's proxy answers to this site, over the TLS that its SuperNode will use.

Nothing is sent but a question that Flower's SuperLink answers with a refusal: it shows that proxy and SuperLink are there, which
certificate stands between, and what time it is over there.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import http.client
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from panfm.enrolment.certificates import CertificateFacts, read_certificate
from panfm.errors import ConfigError, RunError
from panfm.site.joining import CA, CLIENT, TLS_KEY, StudyLink

TIMEOUT_S = 10.0
_QUESTION = "/v1/fleet/pull-messages"
"""A path that every SuperNode uses; asked with GET, which the SuperLink refuses without looking further."""
_NO_CERTIFICATE = 400
"""nginx's answer to a client whose certificate is missing, unknown, expired or revoked."""
_NOBODY_BEHIND = (502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came back."""

    certificate: CertificateFacts
    """Of the proxy, as checked against the study's authority and the address."""
    tls_version: str
    ahead_s: float | None
    """How far this machine's clock is ahead of the coordinator's, to about a second; None where it told no time."""


def knock(folder: Path, link: StudyLink) -> Answered:
    """Ask once.

    Raises: ConfigError when this site's or the proxy's certificate is not taken; RunError when nobody answers, or the SuperLink
        is not there; each with what to do.
    """
    connection = http.client.HTTPSConnection(link.host, link.port, timeout=TIMEOUT_S, context=_context(folder, link))
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        shown, version = connection.sock.getpeercert(binary_form=True), connection.sock.version()
        asked = time.time()
        connection.request("GET", _QUESTION)
        answer = connection.getresponse()
        between = (asked + time.time()) / 2
    except (OSError, http.client.HTTPException) as error:
        raise _why_no_answer(error, link) from error
    finally:
        connection.close()
    _check_status(answer.status, link)
    assert shown is not None
    return Answered(
        certificate=read_certificate(ssl.DER_cert_to_PEM_cert(shown).encode()),
        tls_version=version or "",
        ahead_s=_ahead_s(answer.getheader("Date"), between),
    )


def _context(folder: Path, link: StudyLink) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=folder / CA)
        if link.mutual_tls:
            context.load_cert_chain(folder / CLIENT, folder / TLS_KEY)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{CA}, {CLIENT} or {TLS_KEY} cannot be used ({error}); run `panfm site join KIT` with a new kit"
        ) from error
    return context


def _why_no_answer(error: Exception, link: StudyLink) -> ConfigError | RunError:
    match error:
        case ssl.SSLCertVerificationError():
            return ConfigError(
                f"the certificate at {link.address} is not the study's ({error.verify_message}); do not connect: compare "
                "fingerprints with the coordinator, who may have to renew it or send a new kit"
            )
        case ssl.SSLError():
            return ConfigError(
                f"TLS with {link.address} failed ({error.reason or error}); ask what stands between the two hospitals"
            )
        case socket.gaierror():
            return RunError(
                f"the name {link.host} is not known here; correct this site's DNS, or ask for the right address"
            )
        case ConnectionRefusedError():
            return RunError(
                f"nothing listens at {link.address}; ask the coordinator whether the proxy runs, and on which port"
            )
        case TimeoutError():
            return RunError(
                f"{link.address} did not answer within {TIMEOUT_S:.0f} s; have the firewalls let port {link.port} out and in"
            )
    return RunError(f"{link.address} was not reached ({error}); ask the people of the network in between")


def _check_status(status: int, link: StudyLink) -> None:
    if status == _NO_CERTIFICATE:
        known = (
            "does not take this site's certificate"
            if link.mutual_tls
            else "wants a certificate, which the kit did not bring"
        )
        raise ConfigError(f"the proxy at {link.address} {known}; ask the coordinator for a new kit, and join with it")
    if status in _NOBODY_BEHIND:
        raise RunError(
            f"the proxy at {link.address} is there, and the SuperLink behind it is not ({status}); tell the coordinator"
        )


def _ahead_s(date: str | None, now_s: float) -> float | None:
    """Seconds by which this machine is ahead of a moment that was cut to whole seconds."""
    try:
        told: datetime = parsedate_to_datetime(date or "")
    except (ValueError, TypeError):
        return None
    return now_s - (told.timestamp() + 0.5)
