"""Knocking at the study's door: what the coordinator answers to this site, over the TLS that its SuperNode will use.

Nothing is sent but two questions that Flower's SuperLink answers with a refusal, and that change nothing there. How it refuses
the first shows that proxy and SuperLink are there, which certificate stands between, and what time it is over there; how it
refuses the second, whether it knows this site's node key.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from panfm.enrolment.certificates import CertificateFacts, read_certificate
from panfm.enrolment.node_key import signed_as_node
from panfm.errors import ConfigError, RunError
from panfm.site.joining import CA, CLIENT, NODE_KEY, TLS_KEY, StudyLink

TIMEOUT_S = 10.0
_QUESTION = "/v1/fleet/pull-messages"
"""A path that every SuperNode uses; asked with GET, which the SuperLink refuses without looking further."""
_NO_CERTIFICATE = 400
"""nginx's answer to a client whose certificate is missing, unknown, expired or revoked."""
_NOBODY_BEHIND = (502, 503, 504)
_ACTIVATION = "/v1/fleet/activate-node"
"""What a SuperNode calls first; here with a heartbeat every 0 s: the SuperLink looks the key up, then refuses the interval."""
_UNKNOWN_KEY, _KNOWN_KEY = 2004, 2003
"""Codes of Flower 1.41 for a node that cannot be activated, and for an interval that is none."""
_NOT_AUTHENTICATED = 401


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
    with _connected(folder, link) as connection:
        assert isinstance(connection.sock, ssl.SSLSocket)
        shown, version = connection.sock.getpeercert(binary_form=True), connection.sock.version()
        asked = time.time()
        connection.request("GET", _QUESTION)
        answer = connection.getresponse()
        between = (asked + time.time()) / 2
    _check_status(answer.status, link)
    assert shown is not None
    return Answered(
        certificate=read_certificate(ssl.DER_cert_to_PEM_cert(shown).encode()),
        tls_version=version or "",
        ahead_s=_ahead_s(answer.getheader("Date"), between),
    )


def is_registered(folder: Path, link: StudyLink) -> bool:
    """Whether the SuperLink knows this site's node key, and has not turned it away.

    Raises: as `knock`; ConfigError when there is no node key, or the SuperLink does not take its signature; RunError when its
        answer is not one that Flower 1.41 gives.
    """
    headers, body = activation(_node_key(folder), datetime.now(UTC))
    with _connected(folder, link) as connection:
        connection.request("POST", _ACTIVATION, body, dict(headers))
        answer = connection.getresponse()
        status, said = answer.status, answer.read(10_000)
    return knows_key(status, said, link)


def activation(node_key: bytes, now: datetime) -> tuple[Mapping[str, str], bytes]:
    """The call as Flower's SuperNode makes it, but for the interval: headers and body."""
    moment = now.isoformat()
    public_key, signature = signed_as_node(node_key, moment.encode("ascii"))
    headers = {
        "Content-Type": "application/protobuf",
        "flwr-public-key": b64encode(public_key).decode(),
        "flwr-timestamp": moment,
        "flwr-signature": b64encode(signature).decode(),
    }
    size = len(public_key)  # of 128 to 16383 bytes, so that protobuf writes it in two
    return headers, bytes((0x0A, size & 0x7F | 0x80, size >> 7)) + public_key


def knows_key(status: int, said: bytes, link: StudyLink) -> bool:
    """What the SuperLink's refusal says of the key. Raises: as `is_registered`."""
    try:
        code = json.loads(said)["code"]
    except (ValueError, TypeError, KeyError):
        code = None
    if code in (_KNOWN_KEY, _UNKNOWN_KEY):
        return bool(code == _KNOWN_KEY)
    if status == _NOT_AUTHENTICATED:
        raise ConfigError(
            f"the SuperLink at {link.address} does not take this node's signature; compare the clocks of both machines, and "
            "restore keys/node.key if the line about the keys says so"
        )
    _check_status(status, link)
    raise RunError(
        f"{link.address} answered otherwise than a SuperLink of Flower 1.41 does (status {status}); ask the coordinator what "
        "stands behind the proxy"
    )


def _node_key(folder: Path) -> bytes:
    try:
        return (folder / NODE_KEY).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{folder / NODE_KEY} cannot be read ({error.strerror}); run `panfm site init` again, or restore it"
        ) from error


@contextmanager
def _connected(folder: Path, link: StudyLink) -> Iterator[http.client.HTTPSConnection]:
    """A connection whose failures are told as `_why_no_answer` does."""
    connection = http.client.HTTPSConnection(link.host, link.port, timeout=TIMEOUT_S, context=_context(folder, link))
    try:
        connection.connect()
        yield connection
    except (OSError, http.client.HTTPException) as error:
        raise _why_no_answer(error, link) from error
    finally:
        connection.close()


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
