"""`panfm data show`: one subject's prepared organs as a picture, for a look before any training."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    subject: Annotated[str, typer.Argument(help="A pseudonym of scans.csv.")],
    folder: Annotated[Path, typer.Option(help="The site's folder: it holds store/.")] = Path(),
    store: Annotated[Path | None, typer.Option(help="Folder of the prepared store; FOLDER/store if not given.")] = None,
    out: Annotated[Path | None, typer.Option(help="The picture; FOLDER/SUBJECT.png if not given.")] = None,
    recipe: Annotated[str, typer.Option(help="The recipe that the store was prepared for.")] = "real",
) -> None:
    """Draw the middle slices of each of a subject's organs as prepared, the patch grid over them."""
    import numpy as np

    from panfm.data.show import ShownScan, shown_scans
    from panfm.data.store import PreparedStore
    from panfm.recipes import read_recipe
    from panfm.reporting.contact_sheet import write_contact_sheet
    from panfm.reporting.slices import OrganPicture

    def caption(scan: ShownScan) -> str:
        spacing = " × ".join(f"{step:.3g}" for step in scan.stored_spacing_mm)
        return "\n".join(filter(None, (scan.organ, scan.visit, f"{spacing} mm", scan.split)))

    study, place = read_recipe(recipe), out or folder / f"{subject}.png"
    patch = study.model.patch
    scans = shown_scans(PreparedStore.open(store or folder / "store"), subject, study.organs)
    pictures = [
        OrganPicture(
            organ=scan.organ,
            subject=subject,
            volume=scan.volume,
            spacing_mm=scan.spacing_mm,
            patch=patch,
            masked_patches=np.zeros([side // patch for side in scan.volume.shape], dtype=np.bool_),
        )
        for scan in scans
    ]
    write_contact_sheet(place, pictures, [caption(scan) for scan in scans])
    print(f"{place}: {', '.join(dict.fromkeys(scan.organ for scan in scans))}")
