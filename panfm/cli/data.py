"""`panfm data`: what the engineer of a site runs before any study, from a folder of scans to the store that training reads."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import typer

from panfm.cli.data_check import check
from panfm.cli.data_index import index
from panfm.cli.data_prepare import prepare
from panfm.cli.data_show import show

data = typer.Typer(help="Index, check, prepare and look at a site's scans.", no_args_is_help=True)
data.command()(index)
data.command()(show)
data.command()(check)
data.command()(prepare)
