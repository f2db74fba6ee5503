"""How a coordinator begins: completely, once, for its owner's eyes only, and with certificates that its sites would take."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
import stat
import subprocess
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from panfm.coordinator.begin import GivenCertificates, begin_coordinator, write_flower_config
from panfm.coordinator.settings import (
    LOOPBACK,
    LOOPBACK_CA,
    LOOPBACK_KEY,
    SERVER,
    SERVER_CA,
    SERVER_CA_KEY,
    SERVER_KEY,
    Certificates,
    CoordinatorSettings,
)
from panfm.enrolment.certificates import check_server, issue_server, make_authority, read_certificate
from panfm.errors import ConfigError
from panfm.signing import load_or_make_key, public_hex

NOW = datetime.now(UTC)
SETTINGS = CoordinatorSettings(study="pan", address="panfm.example.org:8443", aliases=("10.0.0.7",))
GIVEN = replace(SETTINGS, certificates=Certificates.given)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _given(folder: Path, *names: str, now: datetime = NOW) -> GivenCertificates:
    folder.mkdir(parents=True, exist_ok=True)
    authority = make_authority("hospital", now)
    issued = issue_server(authority, names, now)
    for name, content in (("ca", authority.certificate_pem), ("pem", issued.certificate_pem), ("key", issued.key_pem)):
        (folder / name).write_bytes(content)
    return GivenCertificates(certificate=folder / "pem", key=folder / "key", authority=folder / "ca")


def test_folder_is_complete_and_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "coordinator"
    begun = begin_coordinator(folder, replace(SETTINGS, mutual_tls=True), None, NOW)
    assert begun.public_key == public_hex(load_or_make_key(folder / "runs" / "coordinator.key"))
    assert set(_content(folder)) == {
        *("coordinator.yaml", "runs/coordinator.key", "flower/config.toml", "proxy/nginx.conf"),
        *(
            "tls/ca.pem",
            "tls/server.pem",
            "tls/server.key",
            "tls/loopback-ca.pem",
            "tls/client-ca.pem",
            "tls/revoked.pem",
        ),
        *("secrets/ca.key", "secrets/client-ca.key", "secrets/loopback.key", "secrets/loopback.pem"),
        "secrets/superexec.secret",
    }
    assert set(begun.made) <= set(_content(folder))
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        is_private = path.is_dir() or path.suffix in (".key", ".secret")
        assert not (is_private and mode & 0o077), path
    assert len((folder / "secrets" / "superexec.secret").read_bytes()) == 48


def test_sites_take_the_proxys_certificate_under_each_name_and_programs_the_superlinks_on_loopback(
    tmp_path: Path,
) -> None:
    begin_coordinator(tmp_path, SETTINGS, None, NOW)
    for name in ("panfm.example.org", "10.0.0.7"):
        check_server(tmp_path / SERVER, tmp_path / SERVER_KEY, (tmp_path / SERVER_CA).read_bytes(), name)
    authority = (tmp_path / LOOPBACK_CA).read_bytes()
    check_server(tmp_path / LOOPBACK, tmp_path / LOOPBACK_KEY, authority, "127.0.0.1")
    with pytest.raises(ConfigError):
        check_server(tmp_path / LOOPBACK, tmp_path / LOOPBACK_KEY, (tmp_path / SERVER_CA).read_bytes(), "127.0.0.1")


def test_beginning_again_changes_nothing_and_completes_what_is_lost(tmp_path: Path) -> None:
    first = begin_coordinator(tmp_path, SETTINGS, None, NOW)
    before = _content(tmp_path)
    again = begin_coordinator(tmp_path, SETTINGS, None, NOW + timedelta(days=1))
    assert (again.public_key, again.made) == (first.public_key, ())
    assert _content(tmp_path) == before
    (tmp_path / SERVER).unlink()
    (tmp_path / "proxy" / "nginx.conf").unlink()
    assert begin_coordinator(tmp_path, SETTINGS, None, NOW).made == (SERVER, "proxy/nginx.conf")
    check_server(tmp_path / SERVER, tmp_path / SERVER_KEY, (tmp_path / SERVER_CA).read_bytes(), "10.0.0.7")


def test_folder_of_another_study_is_refused_and_left_alone(tmp_path: Path) -> None:
    begin_coordinator(tmp_path, SETTINGS, None, NOW)
    before = _content(tmp_path)
    with pytest.raises(ConfigError, match="study is pan, not other"):
        begin_coordinator(tmp_path, replace(SETTINGS, study="other"), None, NOW)
    assert _content(tmp_path) == before


def test_given_certificate_is_taken_over_without_an_authority_of_ones_own(tmp_path: Path) -> None:
    given = _given(tmp_path / "given", "panfm.example.org", "10.0.0.7")
    begin_coordinator(tmp_path / "c", GIVEN, given, NOW)
    assert (tmp_path / "c" / SERVER).read_bytes() == given.certificate.read_bytes()
    assert (tmp_path / "c" / SERVER_CA).read_bytes() == given.authority.read_bytes()
    assert not (tmp_path / "c" / SERVER_CA_KEY).exists()
    assert stat.S_IMODE((tmp_path / "c" / SERVER_KEY).stat().st_mode) == 0o600
    assert begin_coordinator(tmp_path / "c", GIVEN, None, NOW).made == ()


@pytest.mark.parametrize(
    ("names", "age", "reason"),
    [
        (("panfm.example.org",), timedelta(), "10.0.0.7"),
        (("other.example.org", "10.0.0.7"), timedelta(), "Hostname mismatch"),
        (("panfm.example.org", "10.0.0.7"), timedelta(days=500), "expired"),
    ],
)
def test_given_certificate_that_no_site_would_take_makes_nothing(
    tmp_path: Path, names: tuple[str, ...], age: timedelta, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        begin_coordinator(tmp_path / "c", GIVEN, _given(tmp_path / "given", *names, now=NOW - age), NOW)
    assert not (tmp_path / "c").exists()


def test_flower_is_told_where_the_superlink_is_by_an_absolute_path(tmp_path: Path) -> None:
    begin_coordinator(tmp_path / "a", replace(SETTINGS, superlink_port=19091), None, NOW)
    (tmp_path / "a").rename(tmp_path / "b")
    write_flower_config(tmp_path / "b")
    told = tomllib.loads((tmp_path / "b" / "flower" / "config.toml").read_text())["superlink"]
    assert told["default"] == "panfm"
    assert told["panfm"] == {
        "address": "127.0.0.1:19091",
        "root-certificates": str((tmp_path / "b").resolve() / "tls" / "loopback-ca.pem"),
    }


@pytest.mark.parametrize("mutual_tls", [False, True])
def test_proxys_configuration_asks_for_certificates_only_where_it_should(tmp_path: Path, mutual_tls: bool) -> None:
    begin_coordinator(tmp_path, replace(SETTINGS, mutual_tls=mutual_tls, public_port=18443), None, NOW)
    text = (tmp_path / "proxy" / "nginx.conf").read_text()
    assert "listen 18443 ssl;" in text
    assert "server_name panfm.example.org 10.0.0.7;" in text
    assert ("ssl_verify_client on;" in text) == mutual_tls
    assert "$" not in text.replace(")$ {", "")  # nothing of the template is left, but a regular expression's end
    if shutil.which("nginx"):
        done = subprocess.run(
            ["nginx", "-t", "-c", tmp_path / "proxy" / "nginx.conf"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_place_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be written"):
        begin_coordinator(tmp_path / "file" / "c", SETTINGS, None, NOW)


def test_authority_outlives_the_certificate(tmp_path: Path) -> None:
    begin_coordinator(tmp_path, SETTINGS, None, NOW)
    ends = [read_certificate((tmp_path / name).read_bytes()).not_after for name in (SERVER, SERVER_CA)]
    assert [round((end - NOW).days / 100) for end in ends] == [4, 36]
