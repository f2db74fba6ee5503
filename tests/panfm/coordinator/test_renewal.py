"""Renewal: at each step, every site that did what it was told so far can connect."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from panfm.coordinator.begin import GivenCertificates, begin_coordinator
from panfm.coordinator.renewal import new_authority, renew
from panfm.coordinator.settings import LOOPBACK, SERVER, SERVER_KEY, Certificates
from panfm.enrolment.certificates import check_server, issue_server, make_authority, read_certificate
from panfm.enrolment.kit import read_kit
from panfm.errors import ConfigError
from tests.panfm.coordinator.made_study import BUNDLE, SETTINGS, MadeStudy, made_study

NOW = datetime.now(UTC)


def _connects(study: MadeStudy, ca_pem: str) -> bool:
    try:
        check_server(study.coordinator / SERVER, study.coordinator / SERVER_KEY, ca_pem.encode(), "localhost")
    except ConfigError:
        return False
    return True


def _server(study: MadeStudy) -> bytes:
    return (study.coordinator / SERVER).read_bytes()


def test_new_certificate_needs_nothing_of_the_sites(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW - timedelta(days=2))
    before = _server(study)
    assert renew(study.coordinator, None, NOW, BUNDLE) == ["north"]
    assert _server(study) != before
    assert read_certificate(_server(study)).not_after > read_certificate(before).not_after
    assert _connects(study, study.kit.ca_pem)
    assert read_kit(study.kit_content).ca_pem == study.kit.ca_pem


def test_new_authority_overlaps_with_the_old_one(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW)
    old = study.kit.ca_pem
    assert new_authority(study.coordinator, NOW, BUNDLE) == ["north"]
    both = read_kit(study.kit_content).ca_pem
    assert _connects(study, old), "who has not joined again yet is not cut off"
    assert _connects(study, both)
    with pytest.raises(ConfigError, match="a new authority is there already"):
        new_authority(study.coordinator, NOW, BUNDLE)

    renew(study.coordinator, None, NOW, BUNDLE)
    new = read_kit(study.kit_content).ca_pem
    assert _connects(study, both), "who joined with the kit of the first step"
    assert _connects(study, new)
    assert not _connects(study, old), "the old authority signs for nobody any more"
    assert both == new + old
    new_authority(study.coordinator, NOW, BUNDLE)  # and so on


def test_certificate_after_the_expiry_of_the_first_is_good_again(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW - timedelta(days=400))
    assert not _connects(study, study.kit.ca_pem)
    renew(study.coordinator, None, NOW, BUNDLE)
    assert _connects(study, study.kit.ca_pem)


def test_loopback_certificate_is_renewed_only_when_it_ends_soon(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW)
    before = (study.coordinator / LOOPBACK).read_bytes()
    renew(study.coordinator, None, NOW, BUNDLE)
    assert (study.coordinator / LOOPBACK).read_bytes() == before
    renew(study.coordinator, None, NOW + timedelta(days=3640), BUNDLE)
    assert (study.coordinator / LOOPBACK).read_bytes() != before


def test_given_certificates_are_renewed_where_they_come_from(tmp_path: Path) -> None:
    authority = make_authority("hospital", NOW)

    def given(name: str) -> GivenCertificates:
        issued = issue_server(authority, ["localhost"], NOW)
        paths = [tmp_path / f"{name}.{kind}" for kind in ("pem", "key", "ca")]
        for path, content in zip(
            paths, (issued.certificate_pem, issued.key_pem, authority.certificate_pem), strict=True
        ):
            path.write_bytes(content)
        return GivenCertificates(certificate=paths[0], key=paths[1], authority=paths[2])

    folder = tmp_path / "c"
    begin_coordinator(folder, replace(SETTINGS, certificates=Certificates.given), given("first"), NOW)
    with pytest.raises(ConfigError, match="were given to it"):
        renew(folder, None, NOW, BUNDLE)
    with pytest.raises(ConfigError, match="were given to it"):
        new_authority(folder, NOW, BUNDLE)
    renew(folder, given("second"), NOW, BUNDLE)
    assert (folder / SERVER).read_bytes() == (tmp_path / "second.pem").read_bytes()


def test_given_certificate_where_the_study_signs_itself_is_a_mistake(tmp_path: Path) -> None:
    study = made_study(tmp_path, now=NOW)
    path = tmp_path / "x"
    with pytest.raises(ConfigError, match="leave --certificate, --key and --ca out"):
        renew(study.coordinator, GivenCertificates(certificate=path, key=path, authority=path), NOW, BUNDLE)
