"""`panfm coordinator init` and `panfm coordinator renew`: make what a study's coordinator needs, and its certificates anew."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.coordinator.begin import Begun, GivenCertificates
    from panfm.coordinator.settings import CoordinatorSettings

_FOLDER = typer.Option(help="The coordinator's folder.")
_CERTIFICATE = typer.Option(help="A certificate for the address that another authority made (PEM), with its chain.")
_KEY = typer.Option(help="Private key of that certificate (PEM).")
_CA = typer.Option(help="Authorities that the sites check that certificate against (PEM).")

RELOAD = "systemctl reload panfm-proxy, or docker compose kill --signal HUP proxy"
"""How the proxy is told to read its certificates and its list of revoked ones again."""


def init(
    folder: Annotated[Path, typer.Option(help="The coordinator's folder; made where there is none.")],
    study: Annotated[str, typer.Option(help="Name of the study: letters, digits, - and _.")],
    address: Annotated[
        str, typer.Option(help="What the sites dial: a host name or an IP address, :8443 if no port is said.")
    ],
    alias: Annotated[
        list[str] | None, typer.Option(help="A further name or IP address of this host. Repeatable.")
    ] = None,
    certificate: Annotated[Path | None, _CERTIFICATE] = None,
    key: Annotated[Path | None, _KEY] = None,
    ca: Annotated[Path | None, _CA] = None,
    mutual_tls: Annotated[
        bool, typer.Option("--mutual-tls", help="The proxy lets in only sites that show a certificate of this study.")
    ] = False,
    public_port: Annotated[int, typer.Option(help="Where the proxy listens.")] = 8443,
    superlink_port: Annotated[int, typer.Option(help="Where Flower's SuperLink listens, on 127.0.0.1 only.")] = 9091,
    health_port: Annotated[int, typer.Option(help="Where health is asked for, on 127.0.0.1 only.")] = 9099,
) -> None:
    """Make a study's keys, certificates and configurations. Safe to run again."""
    from panfm.coordinator.begin import begin_coordinator
    from panfm.coordinator.settings import Certificates, CoordinatorSettings
    from panfm.enrolment.names import with_port

    given = _given(certificate, key, ca)
    settings = CoordinatorSettings(
        study=study,
        address=with_port(address),
        aliases=tuple(alias or ()),
        mutual_tls=mutual_tls,
        certificates=Certificates.own if given is None else Certificates.given,
        public_port=public_port,
        superlink_port=superlink_port,
        health_port=health_port,
    )
    _report(folder, settings, begin_coordinator(folder, settings, given, datetime.now(UTC)))


def renew(
    folder: Annotated[Path, _FOLDER] = Path(),
    new_ca: Annotated[
        bool,
        typer.Option("--new-ca", help="First of two steps to another authority: kits name the old and the new one."),
    ] = False,
    certificate: Annotated[Path | None, _CERTIFICATE] = None,
    key: Annotated[Path | None, _KEY] = None,
    ca: Annotated[Path | None, _CA] = None,
) -> None:
    """Make the proxy's certificate and all kits anew; see deploy/guides/1_coordinator_init.md for who must do what then."""
    from panfm.coordinator import renewal

    given, now, bundle = _given(certificate, key, ca), datetime.now(UTC), own_bundle()
    if new_ca:
        sites = renewal.new_authority(folder, now, bundle)
        print("made a new authority; the proxy still shows the old one's certificate")
    else:
        sites = renewal.renew(folder, given, now, bundle)
        print(f"made the proxy's certificate anew; have the proxy read it: {RELOAD}")
    for site in sites:
        print(f"made {folder}/kits/{site}.kit.json anew")
    if new_ca:
        print("Send the kits; once every site has joined again, run `panfm coordinator renew` without --new-ca.")


def own_bundle() -> str:
    """SHA-256 of the code that this installation sends. Raises: ConfigError when it cannot be built here."""
    from panfm.coordinator.studies import source_tree
    from panfm.site.bundling import build_bundle

    return build_bundle(source_tree()).digest


def _given(certificate: Path | None, key: Path | None, ca: Path | None) -> GivenCertificates | None:
    from panfm.coordinator.begin import GivenCertificates

    if certificate is None and key is None and ca is None:
        return None
    if certificate is None or key is None or ca is None:
        raise ConfigError(
            "--certificate, --key and --ca belong together; give all three, or none for an authority of the study's own"
        )
    return GivenCertificates(certificate=certificate, key=key, authority=ca)


def _report(folder: Path, settings: CoordinatorSettings, begun: Begun) -> None:
    from panfm.cli.site_init import spaced
    from panfm.signing import fingerprint

    for name in begun.made:
        print(f"made {folder / name}")
    if not begun.made:
        print(f"{folder} is complete; nothing was changed")
    print(f"study        {settings.study} at {settings.address}")
    print(f"public key   {begun.public_key}")
    print(f"fingerprint  {spaced(fingerprint(begun.public_key))}")
    print(_NEXT.format(folder=folder))


_NEXT = """
What to do next
1. Give the sites the public key, and compare the fingerprint by telephone: panfm site init --coordinator-key asks for it.
2. Back up {folder}/runs/coordinator.key and {folder}/secrets; whoever has them can speak for the study.
3. Start the coordinator's service and the proxy: deploy/guides/README.md.
4. Admit each site by its card: panfm coordinator admit CARD --folder {folder}
Guide: deploy/guides/1_coordinator_init.md"""
