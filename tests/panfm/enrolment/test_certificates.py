"""Certificates, held against OpenSSL's own strict reading and against TLS itself; what they say is read back as written."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from panfm.enrolment.certificates import (
    Issued,
    check_host_name,
    check_server,
    first_certificate,
    issue_client,
    issue_loopback,
    issue_server,
    make_authority,
    new_tls_key,
    public_key_pem,
    read_certificate,
    request_for,
    revocation_list,
)
from panfm.errors import ConfigError

NOW = datetime.now(UTC)
AUTHORITY = make_authority("panfm pan", NOW)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the program openssl is not installed")


def _put(folder: Path, issued: Issued, name: str = "server") -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    certificate.write_bytes(issued.certificate_pem)
    key.write_bytes(issued.key_pem)
    return certificate, key


def _openssl(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, check=False)


@needs_openssl
def test_openssl_takes_what_was_issued_by_its_strictest_reading(tmp_path: Path) -> None:
    key = new_tls_key()
    client = issue_client(AUTHORITY, request_for(key, "north"), "north", NOW)
    _put(tmp_path, issue_server(AUTHORITY, ["panfm.example.org", "10.0.0.7"], NOW))
    (tmp_path / "client.pem").write_bytes(client)
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate_pem)
    strictly = ("verify", "-x509_strict", "-CAfile", "ca.pem", "-purpose")
    for words in (
        (*strictly, "sslserver", "-verify_hostname", "panfm.example.org", "server.pem"),
        (*strictly, "sslserver", "-verify_ip", "10.0.0.7", "server.pem"),
        (*strictly, "sslclient", "client.pem"),
    ):
        done = _openssl(tmp_path, *words)
        assert done.returncode == 0, done.stderr
    for words in (
        (*strictly, "sslclient", "server.pem"),  # each is good for its own side only
        (*strictly, "sslserver", "client.pem"),
        (*strictly, "sslserver", "-verify_hostname", "other.example.org", "server.pem"),
    ):
        assert _openssl(tmp_path, *words).returncode != 0


@needs_openssl
def test_openssl_refuses_what_was_revoked_and_nothing_else(tmp_path: Path) -> None:
    clients = [issue_client(AUTHORITY, request_for(new_tls_key(), name), name, NOW) for name in ("north", "south")]
    serial = read_certificate(clients[0]).serial
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.certificate_pem)
    (tmp_path / "crl.pem").write_bytes(revocation_list(AUTHORITY, [serial], NOW))
    for name, client in zip(("north", "south"), clients, strict=True):
        (tmp_path / f"{name}.pem").write_bytes(client)
    check = ("verify", "-x509_strict", "-crl_check", "-CRLfile", "crl.pem", "-CAfile", "ca.pem")
    assert "certificate revoked" in _openssl(tmp_path, *check, "north.pem").stderr
    assert _openssl(tmp_path, *check, "south.pem").returncode == 0


def test_facts_are_those_that_were_asked_for() -> None:
    issued = issue_server(AUTHORITY, ["panfm.example.org", "::1", "10.0.0.7"], NOW, days=10)
    facts = read_certificate(issued.certificate_pem)
    assert facts.subject == "panfm.example.org"
    assert facts.names == ("panfm.example.org", "::1", "10.0.0.7")
    assert facts.public_key_pem == public_key_pem(issued.key_pem)
    assert not facts.is_authority
    assert read_certificate(AUTHORITY.certificate_pem).is_authority
    assert facts.not_before < NOW - timedelta(seconds=305), "Flower lets a site's clock lag so far"
    assert facts.not_after == facts.not_before + timedelta(days=10)


def test_expiry_is_warned_of_thirty_days_ahead() -> None:
    facts = read_certificate(issue_server(AUTHORITY, ["x"], NOW, days=100).certificate_pem)
    assert not facts.is_expiring(facts.not_after - timedelta(days=30))
    assert facts.is_expiring(facts.not_after - timedelta(days=30) + timedelta(seconds=1))
    assert facts.is_expiring(facts.not_after + timedelta(days=400))
    assert (facts.days_left(facts.not_after - timedelta(days=7)), facts.days_left(facts.not_after + timedelta(1))) == (
        7,
        -1,
    )


def test_client_certificate_bears_the_name_that_was_admitted_and_the_key_of_the_request() -> None:
    key = new_tls_key()
    facts = read_certificate(issue_client(AUTHORITY, request_for(key, "somebody else"), "north", NOW))
    assert (facts.subject, facts.public_key_pem) == ("north", public_key_pem(key))
    assert public_key_pem(request_for(key, "x")) == public_key_pem(key)


def test_request_with_a_foreign_signature_is_refused() -> None:
    mine, other = request_for(new_tls_key(), "north"), request_for(new_tls_key(), "north")
    lines, others = mine.splitlines(), other.splitlines()
    forged = b"\n".join([*lines[:-3], *others[-3:]]) + b"\n"
    for request in (forged, b"", AUTHORITY.certificate_pem):
        with pytest.raises(ConfigError, match="request for a certificate"):
            issue_client(AUTHORITY, request, "north", NOW)


@pytest.mark.parametrize("host", ["panfm.example.org", "10.0.0.7"])
def test_given_certificate_that_fits_is_taken(tmp_path: Path, host: str) -> None:
    certificate, key = _put(tmp_path, issue_server(AUTHORITY, ["panfm.example.org", "10.0.0.7"], NOW))
    check_server(certificate, key, AUTHORITY.certificate_pem, host)


def test_given_certificate_that_does_not_fit_is_named_with_the_reason(tmp_path: Path) -> None:
    names = ["panfm.example.org"]
    good = _put(tmp_path, issue_server(AUTHORITY, names, NOW), "good")
    old = _put(tmp_path, issue_server(AUTHORITY, names, NOW - timedelta(days=500)), "old")
    early = _put(tmp_path, issue_server(AUTHORITY, names, NOW + timedelta(days=5)), "early")
    foreign = make_authority("panfm pan", NOW)
    for certificate, key, authority, host, reason in (
        (*good, AUTHORITY, "other.example.org", "Hostname mismatch"),
        (*good, foreign, names[0], "unable to get local issuer certificate|signature failure"),
        (*old, AUTHORITY, names[0], "expired"),
        (*early, AUTHORITY, names[0], "not yet valid"),
        (good[0], old[1], AUTHORITY, names[0], "KEY_VALUES_MISMATCH"),
        (good[0], tmp_path / "absent", AUTHORITY, names[0], "No such file"),
        (good[1], good[1], AUTHORITY, names[0], "PEM"),
    ):
        with pytest.raises(ConfigError, match=reason):
            check_server(certificate, key, authority.certificate_pem, host)


def test_loopback_certificate_is_for_this_machine_alone(tmp_path: Path) -> None:
    authority_pem, server = issue_loopback(NOW)
    certificate, key = _put(tmp_path, server)
    for host in ("localhost", "127.0.0.1"):
        check_server(certificate, key, authority_pem, host)
    with pytest.raises(ConfigError):
        check_server(certificate, key, authority_pem, "panfm.example.org")


def test_python_takes_the_profile_by_its_strict_flag() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=AUTHORITY.certificate_pem.decode())
    assert context.cert_store_stats()["x509_ca"] == 1


def test_first_of_several_certificates_is_the_newest_authority() -> None:
    other = make_authority("other", NOW)
    assert first_certificate(other.certificate_pem + AUTHORITY.certificate_pem) == other.certificate_pem
    with pytest.raises(ConfigError, match="expected a certificate in PEM"):
        first_certificate(b"")


@pytest.mark.parametrize("name", ["panfm.example.org", "localhost", "a-b.c", "10.0.0.7", "fd00::7"])
def test_names_of_hosts(name: str) -> None:
    check_host_name(name)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a..b", "a;b", "*", "a/b", "x" * 64, ".".join(["abc"] * 70)])
def test_what_is_no_name_of_a_host(name: str) -> None:
    with pytest.raises(ConfigError, match="host name or an IP address"):
        check_host_name(name)
