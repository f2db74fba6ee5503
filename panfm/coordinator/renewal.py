"""Renewing certificates while a study goes on: nobody is cut off who did in time what he was told.

    a new certificate      under the same authority; sites need do nothing
    a new authority        first step (`new_authority`): the kits name the old and the new one, the proxy still shows the old
                           one's certificate, and each site joins again with its new kit. Second step (`renew`): the proxy
                           shows a certificate of the new one, and new kits name it alone

With mutual TLS every site's certificate is issued anew with its kit. The proxy reads new files when it is told to reload.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from panfm.coordinator.admitted import renew_kits
from panfm.coordinator.begin import (
    GivenCertificates,
    make_loopback,
    own_authority,
    write_flower_config,
    write_given,
    write_proxy_config,
    write_server,
)
from panfm.coordinator.settings import (
    LOOPBACK,
    SERVER_CA,
    SERVER_CA_KEY,
    Certificates,
    read_settings,
)
from panfm.durable import write_file, write_private
from panfm.enrolment.certificates import issue_server, make_authority, read_certificate
from panfm.errors import ConfigError


def renew(folder: Path, given: GivenCertificates | None, now: datetime, bundle_sha256: str) -> list[str]:
    """Make the proxy's certificate, the proxy's configuration and all kits anew.

    Returns: names of the sites that have a new kit.
    Raises: ConfigError when the certificate comes from another authority and none is given, or it does not fit.
    """
    settings = read_settings(folder)
    if settings.certificates is Certificates.given:
        if given is None:
            raise ConfigError(
                "this study's certificates were given to it: renew them there, and give --certificate, --key and --ca"
            )
        write_given(folder, given, settings)
    else:
        _refuse_given(given)
        authority = own_authority(folder)
        write_server(folder, issue_server(authority, settings.names, now))
        write_file(folder / SERVER_CA, authority.certificate_pem)  # its own alone: the first of those that were there
    if read_certificate((folder / LOOPBACK).read_bytes()).is_expiring(now):
        make_loopback(folder, now)
    write_flower_config(folder)
    write_proxy_config(folder)
    return renew_kits(folder, now, bundle_sha256)


def new_authority(folder: Path, now: datetime, bundle_sha256: str) -> list[str]:
    """Make another authority, and kits that name both; the proxy's certificate stays as it is until `renew`.

    Returns: names of the sites that have a new kit.
    Raises: ConfigError when the study has no authority of its own, or is between the two steps already.
    """
    settings = read_settings(folder)
    if settings.certificates is Certificates.given:
        raise ConfigError(
            "this study has no authority of its own; its certificates were given to it, and are renewed there"
        )
    before = own_authority(folder).certificate_pem
    if (folder / SERVER_CA).read_bytes().count(b"BEGIN CERTIFICATE") > 1:
        raise ConfigError(
            "a new authority is there already; once all sites have joined with their new kits, run renew alone"
        )
    authority = make_authority(f"panfm {settings.study}", now)
    write_private(folder / SERVER_CA_KEY, authority.key_pem)
    write_file(folder / SERVER_CA, authority.certificate_pem + before)
    return renew_kits(folder, now, bundle_sha256)


def _refuse_given(given: GivenCertificates | None) -> None:
    if given is not None:
        raise ConfigError(
            "this study has an authority of its own, which signs; leave --certificate, --key and --ca out"
        )
