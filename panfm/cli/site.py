"""`panfm site`: what a site's engineer and data-protection officer run to own it: make it, approve its code, read its logs."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import typer

from panfm.cli.site_audit import audit
from panfm.cli.site_bundle import approve, review
from panfm.cli.site_init import init
from panfm.cli.site_ledger import ledger

site = typer.Typer(
    help="Make a site's folder, approve the code that it runs, look after its logs.", no_args_is_help=True
)
site.command()(init)
site.command()(review)
site.command()(approve)
site.add_typer(audit, name="audit")
site.add_typer(ledger, name="ledger")
