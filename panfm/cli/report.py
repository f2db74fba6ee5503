"""`panfm report`: make the page that shows what happened in a run, from the run's own records."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run: it holds record.jsonl.")],
) -> None:
    """Write the run's report.html anew and print where it lies."""
    from panfm.reporting.run_report import write_run_report  # here, so that no other verb loads the plotting libraries

    print(write_run_report(run))
