"""How studies, sites, addresses and keys are written, wherever they are exchanged: plain, so that they can be shown, compared and
used in a file's name."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from panfm.enrolment.certificates import check_host_name
from panfm.errors import ConfigError

DEFAULT_PORT = 8443

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[1-9][0-9]{0,4})")


def check_name(name: str, whose: str) -> None:
    """Raises: ConfigError when the name of a study or a site is not written as one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{whose} {name!r:.80} should be at most 64 letters, digits, - and _; rename it")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets. Raises: ConfigError when it is not written so."""
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(
            f"expected an address such as panfm.hospital.org:{DEFAULT_PORT}, got {address!r:.120}; correct it"
        )
    host = str(found["v6"] or found["host"])
    check_host_name(host)
    return host, int(found["port"])


def with_port(address: str) -> str:
    """The address with the port that is meant where none is said."""
    return address if _ADDRESS.fullmatch(address) else f"{address}:{DEFAULT_PORT}"


def check_key(key: str) -> None:
    """Raises: ConfigError when it is no public signing key."""
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise ConfigError(f"expected a public key of 64 hexadecimal digits, got {key!r:.80}; copy it again")


def check_version(version: str) -> None:
    """Raises: ValueError when it is not written like a release."""
    if not re.fullmatch(r"[0-9A-Za-z.+-]{1,40}", version):
        raise ValueError(f"{version!r:.60} is no version")


def check_moment(moment: str) -> None:
    """Raises: ValueError when it is no moment in UTC as `written` writes it."""
    if written(datetime.fromisoformat(moment)) != moment or datetime.fromisoformat(moment).utcoffset() != timedelta():
        raise ValueError(f"{moment!r:.60} is no moment in UTC")


def written(moment: datetime) -> str:
    """A moment in UTC, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")
