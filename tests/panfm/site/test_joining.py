"""Joining: a kit is taken only from a coordinator that the site's own policy names, for this site and these keys."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panfm.coordinator.settings import TASK_KEY
from panfm.enrolment.certificates import check_server
from panfm.enrolment.signed_file import signed, to_bytes
from panfm.errors import ConfigError, PanfmError, ProtocolError
from panfm.signing import fingerprint, load_or_make_key, public_hex
from panfm.site.joining import LocalPorts, StudyLink, join, read_link
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

PORTS = LocalPorts()
MUTUAL = replace(SETTINGS, mutual_tls=True)


def _join(study: MadeStudy, content: bytes | None = None) -> StudyLink:
    return join(study.site, study.kit_content if content is None else content, NOW, PORTS)


def _study_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "study").glob("*")}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return made_study(tmp_path_factory.mktemp("study"))


def test_site_that_joined_knows_its_study(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    link = join(study.site, study.kit_content, NOW, LocalPorts(runtime=1, health=2, forward=3))
    assert read_link(study.site) == link
    assert (link.study, link.site, link.host, link.port, link.mutual_tls) == ("pan", "north", "localhost", 8443, False)
    assert (link.runtime_port, link.health_port, link.forward_port) == (1, 2, 3)
    assert (link.bundle_sha256, link.coordinator) == (BUNDLE, fingerprint(study.public_key))
    files = _study_files(study.site)
    assert files["kit.json"] == study.kit_content
    assert set(files) == {
        "kit.json",
        "link.yaml",
        "ca.pem",
        "local-ca.pem",
        "local.pem",
        "local.key",
        "superexec.secret",
    }
    assert files["ca.pem"].decode() == study.kit.ca_pem
    for name in ("local.key", "superexec.secret"):
        assert stat.S_IMODE((study.site / "study" / name).stat().st_mode) == 0o600
    assert len(files["superexec.secret"]) == 48


def test_mutual_tls_brings_certificate_and_forward_and_going_back_takes_them_away(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    assert _join(study).mutual_tls
    files = _study_files(study.site)
    assert files["client.pem"].decode() == study.kit.client_pem
    forward = files["forward.conf"].decode()
    assert "server localhost:8443;" in forward
    assert "listen 127.0.0.1:9443 ssl;" in forward
    assert "$" not in forward
    key = load_or_make_key(study.coordinator / TASK_KEY)
    assert not _join(study, to_bytes(signed(replace(study.kit, client_pem=""), key))).mutual_tls
    assert not {"client.pem", "forward.conf"} & set(_study_files(study.site))


def test_programs_of_the_site_take_its_local_certificate(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    join(study.site, study.kit_content, NOW.now(NOW.tzinfo), PORTS)
    place = study.site / "study"
    check_server(place / "local.pem", place / "local.key", (place / "local-ca.pem").read_bytes(), "127.0.0.1")


def test_joining_again_keeps_what_running_programs_hold(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    _join(study)
    before = _study_files(study.site)
    admitted(study.coordinator, study.card, NOW + timedelta(days=1))
    _join(study)
    assert _study_files(study.site) == before | {"kit.json": study.kit_content}
    assert before["kit.json"] != study.kit_content


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_kit_with_a_changed_byte_changes_nothing(study: MadeStudy, data: st.DataObject) -> None:
    content = bytearray(study.kit_content)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ProtocolError):
        _join(study, bytes(content))
    assert not (study.site / "study").exists()


def test_kit_for_another_site_is_refused(tmp_path: Path, study: MadeStudy) -> None:
    south = made_site(tmp_path / "south", "south", study.public_key)
    kit = to_bytes(admitted(study.coordinator, south))
    with pytest.raises(ProtocolError, match="the kit is for south, and this is north"):
        _join(study, kit)
    with pytest.raises(ProtocolError, match="the kit is for north, and this is south"):
        join(tmp_path / "south", study.kit_content, NOW, PORTS)


def test_kit_of_a_coordinator_that_the_policy_does_not_name_is_refused(tmp_path: Path, study: MadeStudy) -> None:
    foreign = made_coordinator(tmp_path / "foreign")
    content = to_bytes(admitted(tmp_path / "foreign", study.card))
    with pytest.raises(
        ConfigError, match=f"does not name .{fingerprint(foreign)}.; compare the fingerprint by telephone"
    ):
        _join(study, content)
    assert not (study.site / "study").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"signing_key": "ab" * 32}, "made for another signing key"),
        ({"protocol_version": 1, "panfm_version": "0.0.9"}, r"speaks protocol 1 \(panfm 0\.0\.9\), this site \d"),
    ],
)
def test_kit_that_does_not_fit_is_refused_though_its_signature_holds(
    study: MadeStudy, changes: dict[str, Any], reason: str
) -> None:
    key = load_or_make_key(study.coordinator / TASK_KEY)
    with pytest.raises(PanfmError, match=reason):
        _join(study, to_bytes(signed(replace(study.kit, **changes), key)))


def test_kit_for_an_earlier_node_key_is_refused(tmp_path: Path) -> None:
    study = made_study(tmp_path)
    (study.site / "keys" / "node.key").unlink()
    made_site(study.site, "north", study.public_key, now=NOW + timedelta(days=1))
    with pytest.raises(ProtocolError, match=r"another node key than this site's; send site_card\.json"):
        _join(study)


def test_client_certificate_for_another_key_is_refused(tmp_path: Path) -> None:
    study = made_study(tmp_path, MUTUAL)
    (study.site / "keys" / "tls.key").unlink()
    made_site(study.site, "north", study.public_key, now=NOW + timedelta(days=1))
    with pytest.raises(ProtocolError, match=r"client certificate is not for keys/tls\.key"):
        _join(study)


def test_coordinator_cannot_sign_as_another(study: MadeStudy) -> None:
    """Who has a key of his own and the name of a known coordinator has nothing."""
    forged = signed(study.kit, Ed25519PrivateKey.generate())
    with pytest.raises(ProtocolError, match="signature does not hold"):
        _join(study, to_bytes(forged))
    own = Ed25519PrivateKey.generate()
    renamed = signed(replace(study.kit, coordinator_key=public_hex(own)), own)
    with pytest.raises(ConfigError, match=r"policy\.yaml does not name"):
        _join(study, to_bytes(renamed))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "has joined no study yet; run `panfm site join KIT`"),
        ("", "run `panfm site join KIT` again"),
        ("study: [", "run `panfm site join KIT` again"),
        ("colour: red", "should hold what"),
        ("mutual_tls: 1", "mutual_tls should be of another type"),
    ],
)
def test_link_that_is_not_there_or_damaged_says_what_to_do(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "study").mkdir()
        (tmp_path / "study" / "link.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_link(tmp_path)


def test_equal_ports_are_refused(study: MadeStudy) -> None:
    with pytest.raises(ConfigError, match="three different ports"):
        join(study.site, study.kit_content, NOW, LocalPorts(runtime=9098))
