"""`panfm site init`: make a site's policy, keys, audit log and card; what is there already is kept, never overwritten."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from panfm.errors import ConfigError

if TYPE_CHECKING:
    from panfm.site.onboarding import Begun


def init(
    folder: Annotated[Path, typer.Option(help="The site's folder; made where there is none.")],
    site: Annotated[str, typer.Option(help="The site's name, as the coordinator knows it.")],
    coordinator_key: Annotated[
        list[str], typer.Option(help="Public key of a coordinator, 64 hexadecimal digits. Repeatable.")
    ],
    organs: Annotated[str, typer.Option(help="Organs that the site offers, such as brain,liver.")],
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Keep the key without a passphrase, readable by this user alone.")
    ] = False,
) -> None:
    """Make a site: a policy to fill in, keys, an audit log, and the card for the coordinator. Safe to run again."""
    from panfm.site.onboarding import begin_site
    from panfm.site.policy_template import closed_policy

    offered = tuple(organ.strip() for organ in organs.split(","))
    policy = closed_policy(site, tuple(coordinator_key), offered)
    now = datetime.now(UTC)
    begun = begin_site(folder, policy, now, lambda: None if no_passphrase else _new_passphrase(), ask_passphrase)
    _report(folder, begun)


def _new_passphrase() -> str:
    """From a file that the environment names, or from the person; never from the command line, which others can read.

    Raises: ConfigError when there is neither.
    """
    from panfm.site.identity import CREDENTIAL, PASSPHRASE_FILE, found_passphrase

    found = found_passphrase()
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise ConfigError(
            f"the site's key needs a passphrase and nobody can be asked: name a file with it in {PASSPHRASE_FILE}, give "
            f"the systemd credential {CREDENTIAL}, or say --no-passphrase"
        )
    return str(typer.prompt("Passphrase for the site's key", hide_input=True, confirmation_prompt=True))


def ask_passphrase() -> str:
    """Ask the person for the passphrase of the site's key. Raises: ConfigError when nobody can be asked."""
    from panfm.site.identity import CREDENTIAL, PASSPHRASE_FILE

    if not sys.stdin.isatty():
        raise ConfigError(
            f"the site's key is under a passphrase and nobody can be asked: name a file with it in {PASSPHRASE_FILE}, "
            f"or give the systemd credential {CREDENTIAL}"
        )
    return str(typer.prompt("Passphrase of the site's key", hide_input=True))


def _report(folder: Path, begun: Begun) -> None:
    from panfm.signing import fingerprint

    for name in begun.made:
        print(f"made {folder / name}")
    if not begun.made:
        print(f"{folder} is complete; nothing was changed")
    print(f"public key   {begun.public_key}")
    print(f"fingerprint  {spaced(fingerprint(begun.public_key))}")
    print(_NEXT.format(folder=folder))


def spaced(fingerprint: str) -> str:
    """A fingerprint in groups of four, to be read aloud."""
    return " ".join(fingerprint[place : place + 4] for place in range(0, len(fingerprint), 4))


_NEXT = """
What to do next
1. Read {folder}/policy.yaml and fill it in: as made, it lets nothing in and nothing out.
2. Send {folder}/site_card.json to the coordinator, who compares the fingerprint with you by telephone. Keep it on paper, too.
3. Back up {folder}/keys, and the passphrase in another place. Neither can be recovered.
4. Prepare the scans: deploy/guides/data.md. Approve the study's code: panfm site review, panfm site approve.
5. When the coordinator's kit has come: panfm site join KIT, then panfm site preflight.
Guides: deploy/guides/site.md, deploy/guides/README.md"""
