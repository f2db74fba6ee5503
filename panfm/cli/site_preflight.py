"""`panfm site preflight`: what must be right before the site's service starts, a line each; ends with code 1 if not all is."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer


def preflight(folder: Annotated[Path, typer.Option(help="The site's folder.")] = Path()) -> None:
    """Look at keys, policy, scans, machine, certificates, clock and the way to the coordinator; changes nothing."""
    from panfm.site.preflight import Verdict, line_of, preflight

    checks = preflight(folder, datetime.now(UTC))
    for check in checks:
        print(line_of(check))
    failed = sum(check.verdict is Verdict.fail for check in checks)
    print(f"\n{failed} to mend before the service is started" if failed else "\nready")
    raise typer.Exit(1 if failed else 0)
