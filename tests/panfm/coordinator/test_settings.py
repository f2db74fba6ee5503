"""A coordinator's settings: what is written is read back, and a mistake is one clear line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from panfm.coordinator.settings import Certificates, CoordinatorSettings, has_settings, read_settings, write_settings
from panfm.errors import ConfigError

FULL = CoordinatorSettings(
    study="pan",
    address="panfm.example.org:8443",
    aliases=("10.0.0.7", "fd00::7"),
    mutual_tls=True,
    certificates=Certificates.given,
    public_port=443,
    superlink_port=19091,
    health_port=19099,
)


@pytest.mark.parametrize("settings", [FULL, CoordinatorSettings(study="pan", address="[fd00::7]:8443")])
def test_what_is_written_is_read_back(tmp_path: Path, settings: CoordinatorSettings) -> None:
    assert not has_settings(tmp_path)
    write_settings(tmp_path, settings)
    assert has_settings(tmp_path)
    assert read_settings(tmp_path) == settings


def test_names_are_the_address_and_its_aliases_each_once() -> None:
    settings = CoordinatorSettings(study="pan", address="10.0.0.7:8443", aliases=("panfm.example.org", "10.0.0.7"))
    assert (settings.host, settings.port, settings.names) == ("10.0.0.7", 8443, ("10.0.0.7", "panfm.example.org"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"study": "a b"}, "study 'a b' should be"),
        ({"address": "panfm.example.org"}, "expected an address such as"),
        ({"aliases": ("a;b",)}, "expected a host name"),
        ({"health_port": 8443}, "three different ports"),
        ({"superlink_port": 0}, "ports from 1 to 65535"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        CoordinatorSettings(**{"study": "pan", "address": "a.org:8443"} | changes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "should hold settings"),
        ("- a", "should hold settings"),
        ("study: [", "correct it"),
        ("study: pan", "address"),
        ("study: pan\naddress: a.org:8443\ncolour: red", "'colour' is no setting"),
        ("study: pan\naddress: a.org:8443\npublic_port: '8443'", "public_port should be of another type"),
        ("study: pan\naddress: a.org:8443\nmutual_tls: 1", "mutual_tls should be of another type"),
        ("study: pan\naddress: a.org:8443\naliases: a.org", "aliases should be a list"),
        ("study: pan\naddress: a.org:8443\ncertificates: bought", "certificates own or given"),
    ],
)
def test_mistake_in_the_file_is_one_clear_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "coordinator.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_settings(tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_of_no_coordinator_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="panfm coordinator init"):
        read_settings(tmp_path)
