"""`panfm coordinator admit` and `panfm coordinator revoke`: who takes part, decided by a person who compared a fingerprint."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import getpass
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError, RunError

if TYPE_CHECKING:
    from panfm.enrolment.card import SiteCard

_FOLDER = typer.Option(help="The coordinator's folder.")


def admit(
    card: Annotated[Path, typer.Argument(help="The site's card: site_card.json from its folder.")],
    folder: Annotated[Path, _FOLDER] = Path(),
    fingerprint: Annotated[
        str, typer.Option(help="Admit only if the site's signing key has this fingerprint, as the site read it to you.")
    ] = "",
    by: Annotated[str, typer.Option(help="Who admits; the name of this account if not given.")] = "",
) -> None:
    """Show a site's card, admit the site once its fingerprint is compared, and make its signed kit."""
    from panfm.cli.coordinator_init import own_bundle
    from panfm.coordinator.admitted import admit as put_on_list
    from panfm.coordinator.admitted import kit_path, refused_certificates
    from panfm.enrolment.card import read_card

    shown = read_card(_content(card))
    _show(shown)
    _compare(folder, shown, fingerprint)
    refused = refused_certificates(folder)
    kit = put_on_list(folder, shown, by=by or getpass.getuser(), at=datetime.now(UTC), bundle_sha256=own_bundle())
    print(f"admitted {shown.site} to {kit.study}; made {kit_path(folder, shown.site)}")
    _tell_of_the_proxy(folder, refused)
    _bring_the_superlink_after(folder)
    print(f"Send this kit to the site, which runs: panfm site join {kit_path(folder, shown.site).name} --folder SITE")


def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    reason: Annotated[str, typer.Option(help="Why, in a line; it is kept with the site's card.")],
    folder: Annotated[Path, _FOLDER] = Path(),
) -> None:
    """Turn a site away from its next message on. Its node key never comes back; the site may, with a new one."""
    from panfm.coordinator.admitted import refused_certificates
    from panfm.coordinator.admitted import revoke as take_off_list

    refused = refused_certificates(folder)
    take_off_list(folder, site, reason=reason, at=datetime.now(UTC))
    print(f"revoked {site}")
    _tell_of_the_proxy(folder, refused)
    _bring_the_superlink_after(folder)


def _show(card: SiteCard) -> None:
    from panfm.cli.site_init import spaced
    from panfm.signing import fingerprint

    print(f"site         {card.site}")
    print(f"organs       {', '.join(card.organs)}")
    print(f"software     panfm {card.panfm_version}, protocol {card.protocol_version}, Flower {card.flower_version}")
    print(f"made         {card.made_at}")
    print(f"fingerprint  {spaced(fingerprint(card.signing_key))}")


def _compare(folder: Path, card: SiteCard, told: str) -> None:
    """Raises: ConfigError unless the site's key is known, or a person says that this is its fingerprint."""
    from panfm.coordinator.admitted import is_known
    from panfm.signing import fingerprint

    found = fingerprint(card.signing_key)
    if told:
        if "".join(told.split()).lower() != found:
            raise ConfigError(
                "the card has another fingerprint than the site told; do not admit it, and ask the site who sent it"
            )
    elif is_known(folder, card):
        print("This site is admitted, and the card is signed with the key that was compared then.")
    elif not sys.stdin.isatty():
        raise ConfigError(
            "nobody can be asked to compare the fingerprint; give --fingerprint as the site read it to you"
        )
    elif not typer.confirm("Did the site read you this fingerprint, over a telephone number that you knew before?"):
        raise ConfigError("not admitted: compare the fingerprint by telephone, then run this again")


def _tell_of_the_proxy(folder: Path, refused: frozenset[int]) -> None:
    """Say what a person must do where a certificate counts no more; the SuperLink turns the node itself away at once."""
    from panfm.cli.coordinator_init import RELOAD
    from panfm.coordinator.admitted import refused_certificates

    if refused_certificates(folder) != refused:
        print(f"A certificate of this site counts no more; until the proxy reads that, it takes it: {RELOAD}")


def _bring_the_superlink_after(folder: Path) -> None:
    from panfm.coordinator.flower import FlowerCommand
    from panfm.coordinator.registration import is_up, reconcile
    from panfm.coordinator.settings import FLOWER_HOME

    if not is_up(folder):
        print("The SuperLink is not up; it hears of this when it starts.")
        return
    try:
        for line in reconcile(folder, FlowerCommand(folder.resolve() / FLOWER_HOME)):
            print(line)
    except RunError as error:
        print(f"The SuperLink did not answer, and hears of this later: {error}")


def _content(card: Path) -> bytes:
    try:
        return card.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the card {card} cannot be read ({error.strerror}); give the site's site_card.json"
        ) from error
