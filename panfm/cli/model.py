"""`panfm model`: export a run's model, say what it is, and embed scans with it."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

model = typer.Typer(name="model", help="Use the model that a study made.", no_args_is_help=True)

_FOLDER = Annotated[Path, typer.Argument(help="Folder of an exported model or of a checkpoint: it holds card.json.")]


@model.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run: it holds record.jsonl and model/.")],
    out: Annotated[Path, typer.Argument(help="Folder to make; there must be none of that name.")],
    best: Annotated[
        bool, typer.Option("--best", help="The best round by the sites' evaluations, not the last.")
    ] = False,
) -> None:
    """Copy a run's model, checked, with its model card, into a folder to hand on."""
    from panfm.export.handing_on import export_run  # here and below: torch takes seconds to import

    print(export_run(run, out, best=best))


@model.command()
def card(folder: _FOLDER) -> None:
    """Print the model card of an exported model, after checking its digests."""
    from panfm.export.handing_on import card_of

    print(card_of(folder), end="")


@model.command()
def embed(
    folder: _FOLDER,
    scans: Annotated[Path, typer.Argument(help="Folder with scans.csv; `panfm data index` writes one.")],
    out: Annotated[Path, typer.Option(help="The table to write, Parquet.")] = Path("embeddings.parquet"),
    device: Annotated[str, typer.Option(help="Where the model computes: cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Embed everybody in a table of scans: one row a subject and visit."""
    import panfm
    from panfm.cli.data_progress import scan_progress
    from panfm.export.embedding_table import embed_table, make_place, write_parquet

    make_place(out)
    opened = panfm.load(folder, device)
    with scan_progress("embedding subjects") as advance:
        table = embed_table(opened, scans, advance)
    write_parquet(out, table.rows)
    for subject, visit, organ, reason in table.refused:
        print(f"left out: {' / '.join(filter(None, (subject, visit, organ)))}: {reason}")
    print(f"{out}: {len(table.rows)} rows, {len(table.refused)} scans left out")
