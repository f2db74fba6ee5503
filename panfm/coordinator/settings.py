"""The folder of a study's coordinator: its settings, and where each thing lies.

coordinator.yaml     the settings below
runs/                runs, and the key that signs tasks and kits (server.run_folder)
tls/                 what the proxy reads, and nothing else: it faces the world
secrets/             keys of authorities, the SuperLink's own certificate, what the SuperExec shows to the SuperLink
sites/, kits/        who is admitted, and what each of them was given (panfm.coordinator.admitted)
flower/              Flower's home: its configuration, its database, its logs
proxy/nginx.conf     what stands between the SuperLink and the world
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from panfm.durable import write_file
from panfm.enrolment.certificates import check_host_name
from panfm.enrolment.names import check_name, split_address
from panfm.errors import ConfigError

SETTINGS = "coordinator.yaml"
RUNS, TASK_KEY = "runs", "runs/coordinator.key"
TLS, SERVER_CA, SERVER, SERVER_KEY = "tls", "tls/ca.pem", "tls/server.pem", "tls/server.key"
"""What the proxy shows to the sites, and what they check it against."""
SERVER_CA_KEY = "secrets/ca.key"
"""Absent where the certificates were given."""
LOOPBACK_CA, LOOPBACK, LOOPBACK_KEY = "tls/loopback-ca.pem", "secrets/loopback.pem", "secrets/loopback.key"
"""What the SuperLink shows on 127.0.0.1 to the proxy and to its own programs."""
CLIENT_CA, CLIENT_CA_KEY, REVOKED = "tls/client-ca.pem", "secrets/client-ca.key", "tls/revoked.pem"
"""Mutual TLS: what sites' certificates are checked against, and which of them count no more."""
SECRETS, SECRET = "secrets", "secrets/superexec.secret"
SITES, KITS = "sites", "kits"
FLOWER_HOME, FLOWER_CONFIG, DATABASE = "flower", "flower/config.toml", "flower/state.db"
PROXY = "proxy/nginx.conf"


class Certificates(Enum):
    """Where the proxy's certificate comes from."""

    own = "own"
    """An authority of the study's own, made here."""
    given = "given"
    """The hospital's or a public authority; renewed there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSettings:
    """What `panfm coordinator init` was told."""

    study: str
    """Name of the study: letters, digits, - and _."""
    address: str
    """What sites dial, host:port."""
    aliases: tuple[str, ...] = ()
    """Further host names and IP addresses under which the proxy is reached."""
    mutual_tls: bool = False
    """The proxy lets in only who shows a certificate of this study."""
    certificates: Certificates = Certificates.own
    public_port: int = 8443
    """Where the proxy listens."""
    superlink_port: int = 9091
    """Where the SuperLink listens, on 127.0.0.1 only."""
    health_port: int = 9099
    """Where the runtime's health is asked for, on 127.0.0.1 only."""

    def __post_init__(self) -> None:
        check_name(self.study, "study")
        split_address(self.address)
        for alias in self.aliases:
            check_host_name(alias)
        ports = (self.public_port, self.superlink_port, self.health_port)
        if len(set(ports)) != len(ports) or not all(0 < port < 65536 for port in ports):
            raise ConfigError(
                f"expected three different ports from 1 to 65535, got {', '.join(map(str, ports))}; correct them"
            )

    @property
    def host(self) -> str:
        """Host of the address."""
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        """Port of the address."""
        return split_address(self.address)[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the proxy's certificate must hold, the address's first."""
        return tuple(dict.fromkeys((self.host, *self.aliases)))


def has_settings(folder: Path) -> bool:
    """Whether a coordinator has begun there."""
    return (folder / SETTINGS).exists()


def read_settings(folder: Path) -> CoordinatorSettings:
    """The settings in a coordinator's folder.

    Raises: ConfigError, in one line, when they are missing or mistaken.
    """
    try:
        words = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
        return _settings(words)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {SETTINGS}; give the coordinator's folder with --folder, or make one with `panfm coordinator init`"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / SETTINGS}: {' '.join(str(error).split())[:200]}; correct it") from error


def write_settings(folder: Path, settings: CoordinatorSettings) -> None:
    """Write the settings."""
    words = asdict(settings) | {"aliases": list(settings.aliases), "certificates": settings.certificates.name}
    write_file(folder / SETTINGS, yaml.safe_dump(words, sort_keys=False, allow_unicode=True).encode())


def _settings(words: Any) -> CoordinatorSettings:
    if not isinstance(words, dict):
        raise ValueError("it should hold settings, one `name: value` a line")
    kinds: dict[str, type[Any]] = {
        f.name: {"str": str, "bool": bool, "int": int}.get(str(f.type), object) for f in _FIELDS
    }
    for name, value in words.items():
        if name not in kinds:
            raise ValueError(f"{name!r:.80} is no setting of a coordinator")
        if kinds[name] is not object and type(value) is not kinds[name]:
            raise ValueError(f"{name} should be of another type than {value!r:.80}")
    aliases, source = words.get("aliases", []), words.get("certificates", Certificates.own.name)
    if not isinstance(aliases, list) or source not in Certificates.__members__:
        raise ValueError("aliases should be a list of names, and certificates own or given")
    return CoordinatorSettings(**words | {"aliases": tuple(map(str, aliases)), "certificates": Certificates[source]})


_FIELDS = fields(CoordinatorSettings)
