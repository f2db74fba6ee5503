"""Who is admitted: what is refused with which word, what a kit holds, and that nothing comes back that was turned away."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from panfm.coordinator.admitted import admitted_sites, is_known, kit_path, renew_kits, revoke
from panfm.coordinator.settings import CLIENT_CA, REVOKED, SERVER_CA
from panfm.enrolment.card import SiteCard
from panfm.enrolment.certificates import public_key_pem, read_certificate
from panfm.enrolment.kit import read_kit
from panfm.enrolment.signed_file import signed
from panfm.errors import ConfigError, DataError
from panfm.site.identity import SiteIdentity
from tests.panfm.coordinator.made_study import (
    BUNDLE,
    NOW,
    SETTINGS,
    MadeStudy,
    admitted,
    made_coordinator,
    made_site,
    made_study,
)

MUTUAL = replace(SETTINGS, mutual_tls=True)
LATER = NOW + timedelta(days=1)


def _made_anew(study: MadeStudy, *lost: str, at_days: int = 1) -> SiteCard:
    """The site's card after it lost some of its keys."""
    for name in lost:
        (study.site / name).unlink()
    return made_site(study.site, study.card.site, study.public_key, now=NOW + timedelta(days=at_days))


def test_kit_holds_what_the_site_needs_and_nothing_secret(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    kit = read_kit(study.kit_content)
    assert kit == study.kit
    assert (kit.study, kit.site, kit.address) == ("pan", "north", "localhost:8443")
    assert (kit.signing_key, kit.node_key) == (study.card.signing_key, study.card.node_key)
    assert (kit.coordinator_key, kit.bundle_sha256, kit.client_pem) == (study.public_key, BUNDLE, "")
    assert kit.ca_pem == (study.coordinator / SERVER_CA).read_text()
    assert "PRIVATE" not in study.kit_content.decode()


def test_mutual_tls_gives_the_sites_key_a_certificate_of_the_studys_own(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    certificate = x509.load_pem_x509_certificate(study.kit.client_pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((study.coordinator / CLIENT_CA).read_bytes()))
    facts = read_certificate(study.kit.client_pem.encode())
    assert facts.subject == "north"
    assert facts.public_key_pem == public_key_pem((study.site / "keys" / "tls.key").read_bytes())


def test_list_is_read_back_with_who_and_when(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    (site,) = admitted_sites(study.coordinator)
    assert (site.site, site.card, site.by, site.at) == ("north", study.card, "anna", "2026-11-22T12:00:00+00:00")
    assert (site.node, site.is_revoked) == ("", False)
    assert is_known(study.coordinator, study.card)


def test_same_card_again_makes_the_kit_anew_and_keeps_the_node(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    path = study.coordinator / "sites" / "north.json"
    path.write_text(path.read_text().replace('"node": ""', '"node": "1000"'))
    kit_path(study.coordinator, "north").unlink()
    admitted(study.coordinator, study.card, LATER)
    (site,) = admitted_sites(study.coordinator)
    assert (site.node, site.retired) == ("1000", ())
    assert read_kit(study.kit_content).made_at > study.kit.made_at


def test_new_node_key_takes_the_place_of_the_old_one_which_is_used_up(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    card = _made_anew(study, "keys/node.key", "keys/node.pub")
    assert is_known(study.coordinator, card)
    admitted(study.coordinator, card, LATER)
    (site,) = admitted_sites(study.coordinator)
    assert (site.node, site.retired, site.card.node_key) == ("", (study.card.node_key,), card.node_key)
    with pytest.raises(ConfigError, match="before the one that is admitted"):
        admitted(study.coordinator, study.card, LATER)
    old_key_again = signed(
        replace(card, node_key=study.card.node_key, made_at="2026-12-01T00:00:00+00:00"),
        SiteIdentity.open(study.site).signing_key,
    )
    with pytest.raises(ConfigError, match=r"turned away before and cannot come back; at north, move keys/node\.key"):
        admitted(study.coordinator, old_key_again, LATER)


def test_another_signing_key_under_a_known_name_is_refused(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    impostor = made_site(tmp_path / "impostor", "north", study.public_key, now=LATER)
    assert not is_known(study.coordinator, impostor)
    with pytest.raises(ConfigError, match=r"another signing key \([0-9a-f]{32}\).*revoke it first"):
        admitted(study.coordinator, impostor, LATER)
    assert admitted_sites(study.coordinator)[0].card == study.card
    revoke(study.coordinator, "north", reason="new machine", at=LATER)
    admitted(study.coordinator, impostor, LATER)
    assert is_known(study.coordinator, impostor)


def test_keys_of_one_site_do_not_make_two(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    key = SiteIdentity.open(study.site).signing_key
    renamed = signed(replace(study.card, site="south"), key)
    with pytest.raises(ConfigError, match="are those of north"):
        admitted(study.coordinator, renamed)
    south = made_site(tmp_path / "south", "south", study.public_key)
    borrowed = signed(replace(south, node_key=study.card.node_key), SiteIdentity.open(tmp_path / "south").signing_key)
    with pytest.raises(ConfigError, match="are those of north"):
        admitted(study.coordinator, borrowed)
    revoke(study.coordinator, "north", reason="left", at=LATER)
    with pytest.raises(ConfigError, match="are those of north"):
        admitted(study.coordinator, borrowed)


def test_other_protocol_is_refused_with_both_versions(tmp_path: Path) -> None:
    key = made_coordinator(tmp_path / "c")
    card = made_site(tmp_path / "s", "north", key)
    old = signed(
        replace(card, protocol_version=1, panfm_version="0.0.9"), SiteIdentity.open(tmp_path / "s").signing_key
    )
    with pytest.raises(ConfigError, match=r"north speaks protocol 1 \(panfm 0\.0\.9\), this coordinator \d"):
        admitted(tmp_path / "c", old)
    assert admitted_sites(tmp_path / "c") == []


def test_revoked_site_is_out_with_its_keys_and_may_come_back_with_a_new_one(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    revoke(study.coordinator, "north", reason="machine\nstolen", at=LATER)
    (site,) = admitted_sites(study.coordinator)
    assert (site.is_revoked, site.reason, site.retired) == (True, "machine stolen", (study.card.node_key,))
    assert not kit_path(study.coordinator, "north").exists()
    assert not is_known(study.coordinator, study.card), "the fingerprint must be compared again"
    with pytest.raises(ConfigError, match="cannot come back"):
        admitted(study.coordinator, study.card, LATER)
    card = _made_anew(study, "keys/node.key", "keys/node.pub")
    admitted(study.coordinator, card, LATER)
    (site,) = admitted_sites(study.coordinator)
    assert (site.is_revoked, site.retired) == (False, (study.card.node_key,))


def test_only_an_admitted_site_can_be_revoked(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    with pytest.raises(ConfigError, match="no site called south is admitted here; there are: north"):
        revoke(study.coordinator, "south", reason="x", at=LATER)
    with pytest.raises(ConfigError, match="should be at most 64"):
        revoke(study.coordinator, "../north", reason="x", at=LATER)
    revoke(study.coordinator, "north", reason="x", at=LATER)
    with pytest.raises(ConfigError, match="there are: none"):
        revoke(study.coordinator, "north", reason="x", at=LATER)


def _revoked_serials(coordinator: Path) -> set[int]:
    return {one.serial_number for one in x509.load_pem_x509_crl((coordinator / REVOKED).read_bytes())}


def test_certificates_of_a_revoked_site_and_of_a_replaced_key_stand_on_the_list(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    serials = [read_certificate(study.kit.client_pem.encode()).serial]
    assert _revoked_serials(study.coordinator) == set()
    renewed = admitted(study.coordinator, study.card, LATER)
    assert _revoked_serials(study.coordinator) == set(), "the site still shows the old one until it has joined again"
    card = _made_anew(study, "keys/tls.key", at_days=2)
    kit = admitted(study.coordinator, card, LATER)
    serials = [read_certificate(pem.encode()).serial for pem in (renewed.client_pem, kit.client_pem)]
    assert _revoked_serials(study.coordinator) == {serials[0]}
    revoke(study.coordinator, "north", reason="left", at=LATER)
    assert _revoked_serials(study.coordinator) == set(serials)


def test_kits_are_made_anew_for_all_but_the_revoked(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    for name in ("south", "west"):
        admitted(study.coordinator, made_site(tmp_path / name, name, study.public_key))
    revoke(study.coordinator, "south", reason="left", at=LATER)
    assert renew_kits(study.coordinator, LATER, "6f" * 32) == ["north", "west"]
    kit = read_kit(study.kit_content)
    assert (kit.bundle_sha256, kit.made_at) == ("6f" * 32, "2026-11-23T12:00:00+00:00")
    assert kit.client_pem != study.kit.client_pem
    assert not kit_path(study.coordinator, "south").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: "{",
        lambda t: "[]",
        lambda t: t.replace("north", "south"),
        lambda t: json.dumps(json.loads(t) | {"more": 1}),
        lambda t: json.dumps({k: v for k, v in json.loads(t).items() if k != "card"}),
    ],
)
def test_damaged_file_is_named_and_never_passed_over(tmp_path: Path, spoil: object) -> None:
    study = made_study(tmp_path)
    path = study.coordinator / "sites" / "north.json"
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"north\.json is damaged"):
        admitted_sites(study.coordinator)


def test_file_under_another_name_is_not_taken_for_that_site(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    sites = study.coordinator / "sites"
    (sites / "north.json").rename(sites / "south.json")
    with pytest.raises(DataError, match="holds the card of north"):
        admitted_sites(study.coordinator)
