"""`panfm data prepare`: from a site's table to the prepared store that training reads."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def prepare(
    folder: Annotated[Path, typer.Argument(help="Folder with scans.csv; `panfm data index` writes one.")],
    store: Annotated[Path | None, typer.Option(help="Folder of the prepared store; FOLDER/store if not given.")] = None,
    recipe: Annotated[
        str, typer.Option(help="Whose organ grids: a recipe that comes with panfm, or a study's own .yaml file.")
    ] = "real",
    workers: Annotated[int, typer.Option(min=0, help="Processes, each with one scan at a time; 0: one a core.")] = 0,
) -> None:
    """Bring the prepared store up to date with the site's table; go on where an earlier pass was stopped.

    What did not change since is not prepared again. Scans that cannot be used are left out, and listed with the reason.
    """
    from panfm.cli.data_progress import scan_progress
    from panfm.data.prepare import prepare_store
    from panfm.data.processes import usable_cores
    from panfm.data.store import REFUSED, count_refused
    from panfm.recipes import read_recipe

    study, place = read_recipe(recipe), store or folder / "store"
    with scan_progress("preparing scans") as on_scan:
        prepared = prepare_store(
            folder, place, study.organs, study.prepare, workers=workers or usable_cores(), on_scan=on_scan
        )
    refused = count_refused(place)
    total = len(prepared.entries) + refused
    print(f"prepared: {len(prepared.entries)} of {total} scans, in {place}, on the organ grids of recipe {recipe}")
    if refused:
        print(f"left out: {refused}; {place / REFUSED} says which, and why")
