"""Joining a study: the coordinator's kit is checked against what the site itself knows, and put where the runtime reads it.

    study/kit.json            the kit as it came
    study/link.yaml           the study, and the ports of the site's own programs
    study/ca.pem              what the proxy's certificate is checked against
    study/local*.pem, .key    certificate of the site's programs for each other, on 127.0.0.1 only
    study/superexec.secret    without which no task is handed out there
    study/client.pem, forward.conf    mutual TLS only: what the site shows, and the forward that shows it

A kit changes where a site connects to, never whom it obeys: that is for its own policy, which must name the kit's signer.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import yaml

from panfm.durable import write_file, write_private
from panfm.enrolment.certificates import issue_loopback, public_key_pem, read_certificate
from panfm.enrolment.kit import SiteKit, read_kit
from panfm.enrolment.names import split_address
from panfm.enrolment.node_key import public_node_key
from panfm.enrolment.signed_file import to_bytes
from panfm.errors import ConfigError, ProtocolError
from panfm.signing import fingerprint
from panfm.site.identity import read_public_key
from panfm.site.policy import Policy
from panfm.site.policy_file import read_policy

STUDY, KIT, LINK = "study", "study/kit.json", "study/link.yaml"
NODE_KEY, NODE_PUBLIC_KEY, TLS_KEY, CARD = "keys/node.key", "keys/node.pub", "keys/tls.key", "site_card.json"
CA, CLIENT, FORWARD = "study/ca.pem", "study/client.pem", "study/forward.conf"
LOCAL_CA, LOCAL, LOCAL_KEY, SECRET = (
    "study/local-ca.pem",
    "study/local.pem",
    "study/local.key",
    "study/superexec.secret",
)
_SECRET_BYTES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLink:
    """How the site's programs reach the study, and each other."""

    study: str
    site: str
    address: str
    """The coordinator's, host:port."""
    mutual_tls: bool
    bundle_sha256: str
    """The code that the study means to send."""
    coordinator: str
    """Fingerprint of the key that signed the kit."""
    panfm_version: str
    flower_version: str
    protocol_version: int
    """Of the coordinator, when it made the kit."""
    runtime_port: int
    """Where the SuperNode hands out tasks, on 127.0.0.1 only."""
    health_port: int
    """Where the runtime's health is asked for, on 127.0.0.1 only."""
    forward_port: int
    """Mutual TLS: where the forward listens, on 127.0.0.1 only."""

    def __post_init__(self) -> None:
        ports = (self.runtime_port, self.health_port, self.forward_port)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPorts:
    """Ports of the site's own programs, on 127.0.0.1."""

    runtime: int = 9094
    health: int = 9098
    forward: int = 9443


def join(folder: Path, content: bytes, now: datetime, ports: LocalPorts) -> StudyLink:
    """Take up a kit; secrets and local certificates that are there stay, so that running programs find them.

    Raises: ProtocolError when a byte of the kit is not as it was signed, or it is not for this site; ConfigError when the site's
        policy does not know the coordinator, or the site's folder is not complete.
    """
    kit, policy = read_kit(content), read_policy(folder)
    check_kit(kit, folder, policy)
    link = StudyLink(
        study=kit.study,
        site=kit.site,
        address=kit.address,
        mutual_tls=bool(kit.client_pem),
        bundle_sha256=kit.bundle_sha256,
        coordinator=fingerprint(kit.coordinator_key),
        panfm_version=kit.panfm_version,
        flower_version=kit.flower_version,
        protocol_version=kit.protocol_version,
        runtime_port=ports.runtime,
        health_port=ports.health,
        forward_port=ports.forward,
    )
    try:
        _write(folder, kit, link, now)
    except OSError as error:
        raise ConfigError(
            f"{folder / STUDY} cannot be written ({error.strerror}); correct its owner, or make room"
        ) from error
    return link


def check_kit(kit: SiteKit, folder: Path, policy: Policy) -> None:
    """Raises: ConfigError or ProtocolError, with what to do, when this site does not take the kit."""
    from panfm.protocol import PROTOCOL_VERSION  # torch comes with it, which the runtime's own processes do without

    if kit.coordinator_key not in policy.coordinator_keys:
        raise ConfigError(
            f"the kit is signed by a coordinator that policy.yaml does not name ({fingerprint(kit.coordinator_key)}); compare "
            "the fingerprint by telephone, and put the key under coordinator_keys only if it is the right one"
        )
    if kit.site != policy.site:
        raise ProtocolError(
            f"the kit is for {kit.site}, and this is {policy.site}; ask the coordinator for this site's own"
        )
    if kit.signing_key != read_public_key(folder):
        raise ProtocolError(
            "the kit was made for another signing key than this site's; send site_card.json of this folder again"
        )
    if kit.node_key != read_node_key(folder):
        raise ProtocolError(
            "the kit was made for another node key than this site's; send site_card.json of this folder again"
        )
    if kit.protocol_version != PROTOCOL_VERSION:
        raise ConfigError(
            f"the coordinator speaks protocol {kit.protocol_version} (panfm {kit.panfm_version}), this site {PROTOCOL_VERSION}; "
            "install the same release on both sides"
        )
    if kit.client_pem and _certified_key(kit) != public_key_pem(_read(folder / TLS_KEY)):
        raise ProtocolError(
            "the kit's client certificate is not for keys/tls.key; send site_card.json of this folder again"
        )


def check_joined(folder: Path) -> SiteKit:
    """The kit that the site took up, once it is known that the site would still take it.

    Raises: as `join`; ConfigError when the site has joined none.
    """
    if not (folder / KIT).exists():
        read_link(folder)  # says that it has joined none
    kit = read_kit(_read(folder / KIT))
    check_kit(kit, folder, read_policy(folder))
    return kit


def read_node_key(folder: Path) -> str:
    """The public half of the site's node key, in one line. Raises: ConfigError when there is none."""
    return public_node_key(_read(folder / NODE_KEY))


def read_link(folder: Path) -> StudyLink:
    """How the site reaches its study.

    Raises: ConfigError, in one line, when it has joined none or the file is mistaken.
    """
    try:
        words = yaml.safe_load((folder / LINK).read_text(encoding="utf-8"))
        return _link(words)
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has joined no study yet; run `panfm site join KIT` with the coordinator's kit"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder / LINK}: {' '.join(str(error).split())[:200]}; run `panfm site join KIT` again"
        ) from error


def _link(words: Any) -> StudyLink:
    kinds = {f.name: {"str": str, "bool": bool, "int": int}[str(f.type)] for f in fields(StudyLink)}
    if not isinstance(words, dict) or not words.keys() <= kinds.keys():
        raise ValueError("it should hold what `panfm site join` wrote")
    for name, value in words.items():
        if type(value) is not kinds[name]:
            raise ValueError(f"{name} should be of another type than {value!r:.80}")
    return StudyLink(**words)


def _write(folder: Path, kit: SiteKit, link: StudyLink, now: datetime) -> None:
    (folder / STUDY).mkdir(mode=0o700, exist_ok=True)
    if not (folder / LOCAL).exists():
        authority_pem, local = issue_loopback(now)
        write_file(folder / LOCAL_CA, authority_pem)
        write_private(folder / LOCAL_KEY, local.key_pem)
        write_file(folder / LOCAL, local.certificate_pem)
    if not (folder / SECRET).exists():
        write_private(folder / SECRET, secrets.token_bytes(_SECRET_BYTES))
    write_file(folder / KIT, to_bytes(kit))
    write_file(folder / CA, kit.ca_pem.encode())
    if kit.client_pem:
        write_file(folder / CLIENT, kit.client_pem.encode())
        write_file(folder / FORWARD, _forward(link).encode())
    else:
        (folder / CLIENT).unlink(missing_ok=True)
        (folder / FORWARD).unlink(missing_ok=True)
    write_file(folder / LINK, yaml.safe_dump(asdict(link), sort_keys=False).encode())  # last: it says that all is there


def _forward(link: StudyLink) -> str:
    template = Template(resources.files("panfm.site").joinpath("forward.conf.template").read_text(encoding="utf-8"))
    return template.substitute(address=link.address, host=link.host, port=link.port, forward_port=link.forward_port)


def _certified_key(kit: SiteKit) -> bytes:
    return read_certificate(kit.client_pem.encode()).public_key_pem


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); run `panfm site init` again, or restore it"
        ) from error
