"""How a coordinator begins: keys, certificates, secrets and the configurations of SuperLink and proxy, in a folder of its own.

Nothing that exists is ever overwritten, so beginning again is safe: what is there is kept, what is missing is made. Certificates
are renewed by `panfm.coordinator.renewal`.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template

from panfm.coordinator.settings import (
    CLIENT_CA,
    CLIENT_CA_KEY,
    FLOWER_CONFIG,
    FLOWER_HOME,
    KITS,
    LOOPBACK,
    LOOPBACK_CA,
    LOOPBACK_KEY,
    PROXY,
    REVOKED,
    RUNS,
    SECRET,
    SECRETS,
    SERVER,
    SERVER_CA,
    SERVER_CA_KEY,
    SERVER_KEY,
    SETTINGS,
    SITES,
    TASK_KEY,
    TLS,
    Certificates,
    CoordinatorSettings,
    has_settings,
    read_settings,
    write_settings,
)
from panfm.durable import write_file, write_private
from panfm.enrolment.certificates import (
    Issued,
    check_server,
    first_certificate,
    issue_loopback,
    issue_server,
    make_authority,
    revocation_list,
)
from panfm.errors import ConfigError
from panfm.signing import load_or_make_key, public_hex

_SECRET_BYTES = 48
_FOLDERS = (RUNS, TLS, SECRETS, SITES, KITS, FLOWER_HOME, str(Path(PROXY).parent))


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenCertificates:
    """Files of a certificate that another authority made."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What a coordinator's folder holds now."""

    public_key: str
    """Of the key that signs tasks and kits."""
    made: tuple[str, ...]
    """Names of what was made; all else was there before."""


def begin_coordinator(
    folder: Path, settings: CoordinatorSettings, given: GivenCertificates | None, now: datetime
) -> Begun:
    """Make what the coordinator's folder lacks.

    Args:
        given: with `Certificates.given`, the proxy's certificate; looked at only where the folder has none yet.
    Raises: ConfigError when the folder belongs to another study, a given certificate does not fit, or it cannot be written.
    """
    if has_settings(folder) and (there := read_settings(folder)) != settings:
        raise ConfigError(
            f"{folder / SETTINGS} exists and says otherwise ({_difference(there, settings)}); correct it by hand, or choose "
            "another folder"
        )
    if given is not None:
        _check_given(given, settings)
    try:
        _make_folders(folder)
        made = [name for name, make in _steps(folder, settings, given, now).items() if _lacks(folder, name, make)]
        key = load_or_make_key(folder / TASK_KEY)
    except OSError as error:
        raise ConfigError(
            f"the coordinator's folder {folder} cannot be written ({error.strerror}); choose another"
        ) from error
    return Begun(public_key=public_hex(key), made=tuple(made))


def write_flower_config(folder: Path) -> None:
    """Tell Flower's command line where the SuperLink is; by absolute path, as it demands, so anew where the folder was moved."""
    settings = read_settings(folder)
    authority = json.dumps(str((folder / LOOPBACK_CA).resolve()))  # a JSON string is a TOML one
    lines = [
        "[superlink]",
        'default = "panfm"',
        "[superlink.panfm]",
        f'address = "127.0.0.1:{settings.superlink_port}"',
        f"root-certificates = {authority}",
    ]
    write_file(folder / FLOWER_CONFIG, ("\n".join(lines) + "\n").encode())


def write_proxy_config(folder: Path) -> None:
    """Write what nginx reads, from the template beside this file."""
    settings = read_settings(folder)
    template = Template(
        resources.files("panfm.coordinator").joinpath("nginx.conf.template").read_text(encoding="utf-8")
    )
    demands = "ssl_client_certificate ../tls/client-ca.pem; ssl_crl ../tls/revoked.pem; ssl_verify_client on;"
    text = template.substitute(
        study=settings.study,
        server_names=" ".join(settings.names),
        public_port=settings.public_port,
        superlink_port=settings.superlink_port,
        client_verification=demands if settings.mutual_tls else "",
    )
    write_file(folder / PROXY, text.encode())


def write_server(folder: Path, issued: Issued) -> None:
    """Keep what the proxy shows; the certificate comes last, for where there is one there is its key."""
    write_private(folder / SERVER_KEY, issued.key_pem)
    write_file(folder / SERVER, issued.certificate_pem)


def write_given(folder: Path, given: GivenCertificates, settings: CoordinatorSettings) -> None:
    """Keep a certificate that another authority made. Raises: ConfigError when a site would not take it."""
    _check_given(given, settings)
    write_file(folder / SERVER_CA, given.authority.read_bytes())
    issued = Issued(certificate_pem=given.certificate.read_bytes(), key_pem=given.key.read_bytes())
    write_server(folder, issued)


def own_authority(folder: Path, certificate: str = SERVER_CA, key: str = SERVER_CA_KEY) -> Issued:
    """An authority of the folder, with its key: the first certificate of the file. Raises: ConfigError when it has none."""
    try:
        first = first_certificate((folder / certificate).read_bytes())
        return Issued(certificate_pem=first, key_pem=(folder / key).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder / key} cannot be read ({error.strerror}), and nothing can be issued without it; restore it from the backup"
        ) from error


def _steps(
    folder: Path, settings: CoordinatorSettings, given: GivenCertificates | None, now: datetime
) -> dict[str, Callable[[], object]]:
    """What a folder holds, in the order in which it is made: file -> how. Each is made when its file is not there."""
    study = f"panfm {settings.study}"
    steps: dict[str, Callable[[], object]] = {
        SETTINGS: lambda: write_settings(folder, settings),
        TASK_KEY: lambda: load_or_make_key(folder / TASK_KEY),
        SECRET: lambda: write_private(folder / SECRET, secrets.token_bytes(_SECRET_BYTES)),
        LOOPBACK: lambda: make_loopback(folder, now),
    }
    if settings.certificates is Certificates.own:
        steps[SERVER_CA] = lambda: _make_authority(folder, study, SERVER_CA, SERVER_CA_KEY, now)
        steps[SERVER] = lambda: write_server(folder, issue_server(own_authority(folder), settings.names, now))
    else:
        steps[SERVER] = lambda: _take_given(folder, given, settings)
    if settings.mutual_tls:
        steps[CLIENT_CA] = lambda: _make_authority(folder, f"{study} sites", CLIENT_CA, CLIENT_CA_KEY, now)
        steps[REVOKED] = lambda: write_revoked(folder, (), now)
    steps[FLOWER_CONFIG] = lambda: write_flower_config(folder)
    steps[PROXY] = lambda: write_proxy_config(folder)
    return steps


def write_revoked(folder: Path, serials: Iterable[int], now: datetime) -> None:
    """Write which client certificates count no more; the proxy reads it when it is told to reload."""
    authority = own_authority(folder, CLIENT_CA, CLIENT_CA_KEY)
    write_file(folder / REVOKED, revocation_list(authority, serials, now))


def _make_folders(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700, exist_ok=True)


def _lacks(folder: Path, name: str, make: Callable[[], object]) -> bool:
    """Make the file if it is not there; whether it was not."""
    if (folder / name).exists():
        return False
    make()
    return True


def _make_authority(folder: Path, name: str, certificate: str, key: str, now: datetime) -> None:
    authority = make_authority(name, now)
    write_private(folder / key, authority.key_pem)
    write_file(folder / certificate, authority.certificate_pem)


def make_loopback(folder: Path, now: datetime) -> None:
    """Make what the SuperLink shows to its own programs; they see it when they start."""
    authority_pem, server = issue_loopback(now)
    write_file(folder / LOOPBACK_CA, authority_pem)
    write_private(folder / LOOPBACK_KEY, server.key_pem)
    write_private(folder / LOOPBACK, server.certificate_pem)


def _take_given(folder: Path, given: GivenCertificates | None, settings: CoordinatorSettings) -> None:
    if given is None:
        raise ConfigError(
            f"{folder} lacks the certificate that was given to it; give it again: --certificate, --key and --ca"
        )
    write_given(folder, given, settings)


def _check_given(given: GivenCertificates, settings: CoordinatorSettings) -> None:
    try:
        authority_pem = given.authority.read_bytes()
    except OSError as error:
        raise ConfigError(f"{given.authority} cannot be read ({error.strerror}); correct --ca") from error
    for name in settings.names:
        check_server(given.certificate, given.key, authority_pem, name)


def _difference(there: CoordinatorSettings, wanted: CoordinatorSettings) -> str:
    name = next(n for n in CoordinatorSettings.__dataclass_fields__ if getattr(there, n) != getattr(wanted, n))
    return f"{name} is {getattr(there, name)!s:.80}, not {getattr(wanted, name)!s:.80}"
