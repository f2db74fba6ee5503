"""The certificates of a study: an own authority, what servers and sites show, what was revoked, and what a certificate says.

P-384 throughout, as for the keys of Flower's nodes. Profiles follow RFC 5280 so that strict readers (Python's VERIFY_X509_STRICT,
OpenSSL's -x509_strict) take them, too. Validity is counted from a moment before now, for the clocks of two hospitals never agree.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, PROTOCOL_TLS_SERVER, MemoryBIO, SSLContext, SSLError, SSLObject, SSLWantReadError

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from panfm.errors import ConfigError

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 397
"""The longest that public authorities may issue for (CA/Browser Forum, SC-063 keeps 398); renewed well before."""
EXPIRY_WARNING = timedelta(days=30)
"""From when on status and preflight warn: two people in two houses must find the time to renew."""
_BACKDATED = timedelta(minutes=10)
"""More than Flower lets a site's clock lag (305 s)."""
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate with its private key, both PEM."""

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """What a person wants to know of a certificate."""

    subject: str
    """Common name; empty where it has none."""
    names: tuple[str, ...]
    """Host names and IP addresses that it is good for."""
    not_before: datetime
    not_after: datetime
    serial: int
    is_authority: bool
    public_key_pem: bytes

    def is_expiring(self, now: datetime) -> bool:
        """Whether it has run out, or will soon."""
        return self.not_after - now < EXPIRY_WARNING

    def days_left(self, now: datetime) -> int:
        """Whole days until it runs out; negative when it has."""
        return (self.not_after - now).days


def make_authority(name: str, now: datetime, days: int = AUTHORITY_DAYS) -> Issued:
    """An authority of one's own, which signs certificates and revocation lists and no further authorities."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _named(name)
    builder = (
        _begun(subject, subject, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(_own_identifier(key.public_key()), critical=False)
    )
    return Issued(certificate_pem=_pem(builder.sign(key, hashes.SHA384())), key_pem=_private_pem(key))


def issue_server(authority: Issued, names: Sequence[str], now: datetime, days: int = CERTIFICATE_DAYS) -> Issued:
    """A certificate for a server under these host names and IP addresses, with a new key.

    Raises: ConfigError when a name is none.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
    certificate = _issue(
        authority, names[0], key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, now, days, alternatives
    )
    return Issued(certificate_pem=certificate, key_pem=_private_pem(key))


def issue_client(
    authority: Issued, request_pem: bytes, site: str, now: datetime, days: int = CERTIFICATE_DAYS
) -> bytes:
    """A certificate with which a site shows itself, for the key of its request; the name in the request is not looked at.

    Raises: ConfigError when the request is none.
    """
    return _issue(authority, site, _requested_key(request_pem), ExtendedKeyUsageOID.CLIENT_AUTH, now, days)


def issue_loopback(
    now: datetime, names: Sequence[str] = ("localhost", "127.0.0.1"), days: int = AUTHORITY_DAYS
) -> tuple[bytes, Issued]:
    """A certificate for programs of one machine, under an authority whose key is thrown away.

    It lives as long as an authority, for no other machine can be asked for it; it is made anew by removing it.
    Returns: the authority's certificate, the server's with its key.
    """
    authority = make_authority("panfm loopback", now, days)
    return authority.certificate_pem, issue_server(authority, names, now, days)


def new_tls_key() -> bytes:
    """A private key for a site's side of mutual TLS, PEM."""
    return _private_pem(ec.generate_private_key(ec.SECP384R1()))


def request_for(key_pem: bytes, site: str) -> bytes:
    """A site's request for a certificate of its key, PEM. Raises: ConfigError when the key is none."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_named(site))
    return builder.sign(_private(key_pem), hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def revocation_list(authority: Issued, serials: Iterable[int], now: datetime) -> bytes:
    """The certificates that count no more, PEM.

    It is good for as long as the authority: a server that holds an outdated list lets nobody in, and nothing here would write
    the next one in time.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - _BACKDATED)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec_public(issuer.public_key())), critical=False
        )
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial in sorted(serials):
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(_private(authority.key_pem), hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def read_certificate(pem: bytes) -> CertificateFacts:
    """The facts of the first certificate in a PEM text. Raises: ConfigError when it holds none."""
    certificate = _certificate(pem)
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return CertificateFacts(
        subject=str(names[0].value) if names else "",
        names=_names_of(certificate),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        serial=certificate.serial_number,
        is_authority=_is_authority(certificate),
        public_key_pem=_public_pem(certificate.public_key()),
    )


def first_certificate(pem: bytes) -> bytes:
    """The first certificate of a PEM text that may hold several. Raises: ConfigError when it holds none."""
    return _pem(_certificate(pem))


def public_key_pem(key_pem: bytes) -> bytes:
    """The public half of a private key or of a request, PEM. Raises: ConfigError when it is neither."""
    if b"CERTIFICATE REQUEST" in key_pem:
        return _public_pem(_requested_key(key_pem))
    return _public_pem(_private(key_pem).public_key())


def check_server(certificate: Path, key: Path, authority_pem: bytes, host: str) -> None:
    """Whether a peer that trusts the authority would take this server for `host`: a TLS handshake in memory, and no other rules.

    Raises: ConfigError with what a peer would say: another key, name, authority, or date.
    """
    server, client = SSLContext(PROTOCOL_TLS_SERVER), SSLContext(PROTOCOL_TLS_CLIENT)
    try:
        server.load_cert_chain(certificate, key)
        client.load_verify_locations(cadata=authority_pem.decode("ascii"))
        _shake_hands(server, client, host)
    except (SSLError, OSError, ValueError) as error:
        said = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
        raise ConfigError(
            f"a site would not take the certificate {certificate} for {host}: {said}; give the certificate, key and authority "
            "that belong together and name this address"
        ) from error


def check_host_name(name: str) -> None:
    """Raises: ConfigError when it is neither a host name nor an IP address."""
    _general_name(name)


def _shake_hands(server: SSLContext, client: SSLContext, host: str) -> None:
    up, down = MemoryBIO(), MemoryBIO()
    asks = client.wrap_bio(down, up, server_hostname=host)
    answers = server.wrap_bio(up, down, server_side=True)
    for _ in range(3):  # TLS 1.3 needs two turns, TLS 1.2 three
        if all([_goes_on(asks), _goes_on(answers)]):
            return
    raise SSLError("the handshake did not end")


def _goes_on(side: SSLObject) -> bool:
    """Take the handshake as far as what has arrived allows; whether this side is done."""
    try:
        side.do_handshake()
    except SSLWantReadError:
        return False
    return True


def _issue(
    authority: Issued,
    name: str,
    key: ec.EllipticCurvePublicKey,
    purpose: x509.ObjectIdentifier,
    now: datetime,
    days: int,
    alternatives: x509.SubjectAlternativeName | None = None,
) -> bytes:
    issuer, issuer_key = x509.load_pem_x509_certificate(authority.certificate_pem), _private(authority.key_pem)
    builder = (
        _begun(_named(name), issuer.subject, key, now, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(_own_identifier(key), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _pem(builder.sign(issuer_key, hashes.SHA384()))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    start = now.astimezone(UTC) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _own_identifier(key: ec.EllipticCurvePublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # RFC 5280's upper bound


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ConfigError(f"expected a host name or an IP address, got {name!r:.120}; correct it")
    return x509.DNSName(name)


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
        if request.is_signature_valid:
            return _ec_public(request.public_key())
    except ValueError:
        pass
    raise ConfigError("expected a request for a certificate of a P-384 key, signed with it; make the site's card again")


def _ec_public(key: object) -> ec.EllipticCurvePublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("no P-384 key")
    return key


def _private(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError) as error:
        raise ConfigError("expected a private key in PEM without a passphrase; restore it from the backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("expected a private key on an elliptic curve; restore it from the backup")
    return key


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(
            "expected a certificate in PEM; give the file that begins with -----BEGIN CERTIFICATE-----"
        ) from error


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(*form, serialization.NoEncryption())


def _public_pem(key: object) -> bytes:
    assert hasattr(key, "public_bytes")
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem
