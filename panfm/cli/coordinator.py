"""`panfm coordinator`: what the coordinator of a study runs: begin it, admit its sites, run it, and see how it stands."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import typer

from panfm.cli.coordinator_admit import admit, revoke
from panfm.cli.coordinator_init import init, renew
from panfm.cli.coordinator_run import follow, run
from panfm.cli.coordinator_status import status
from panfm.cli.coordinator_stop import stop

coordinator = typer.Typer(help="Begin a study, admit its sites, run it, see how it stands.", no_args_is_help=True)
coordinator.command()(init)
coordinator.command()(admit)
coordinator.command()(revoke)
coordinator.command()(renew)
coordinator.command()(run)
coordinator.command()(follow)
coordinator.command()(stop)
coordinator.command()(status)
