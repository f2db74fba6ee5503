"""`panfm bundle`: build the code that a study sends, the same bytes wherever the same sources are built."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bundle(
    tree: Annotated[Path, typer.Argument(help="Checkout of panfm, at the tag to build.")] = Path(),
    out: Annotated[Path, typer.Option(help="The bundle.")] = Path("panfm.fab"),
) -> None:
    """Build the bundle of a checkout and print its SHA-256, which sites approve."""
    from panfm.durable import write_file
    from panfm.site.bundling import build_bundle

    built = build_bundle(tree)
    write_file(out, built.content)
    print(f"{built.digest}  {out}")
