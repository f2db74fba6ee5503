"""How addresses and moments are written: one way each, and read back as they were meant."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from panfm.enrolment.names import check_moment, split_address, with_port, written
from panfm.errors import ConfigError


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("panfm.example.org:8443", "panfm.example.org", 8443),
        ("10.0.0.7:443", "10.0.0.7", 443),
        ("[fd00::7]:8443", "fd00::7", 8443),
    ],
)
def test_address_is_a_host_and_a_port(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)
    assert with_port(address) == address


def test_port_that_is_not_said_is_8443() -> None:
    assert with_port("panfm.example.org") == "panfm.example.org:8443"
    assert with_port("[fd00::7]") == "[fd00::7]:8443"


@pytest.mark.parametrize(
    "address", ["", ":8443", "a", "a:", "a:0", "a:08", "a:99999", "a:b:1", "fd00::7:8443", "a b:1", "a;b:1"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        split_address(address)


def test_moment_is_written_in_utc_to_the_second() -> None:
    moment = datetime(2026, 11, 22, 13, 30, 5, 999, tzinfo=timezone(timedelta(hours=1)))
    assert written(moment) == "2026-11-22T12:30:05+00:00"
    check_moment(written(moment))
    assert datetime.fromisoformat(written(moment)).tzinfo == UTC
