"""`panfm site`: what a site's engineer and data-protection officer run to own it: make it, approve its code, read its logs."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import typer

from panfm.cli.site_audit import audit
from panfm.cli.site_bundle import approve, review
from panfm.cli.site_init import init
from panfm.cli.site_join import join
from panfm.cli.site_ledger import ledger
from panfm.cli.site_preflight import preflight

site = typer.Typer(
    help="Make a site's folder, join a study, approve the code that it runs, look after its logs.", no_args_is_help=True
)
site.command()(init)
site.command()(join)
site.command()(preflight)
site.command()(review)
site.command()(approve)
site.add_typer(audit, name="audit")
site.add_typer(ledger, name="ledger")
