"""Four small hospitals of real scans: three with a few IXI brains each, one with three Sunnybrook hearts.

Scans are copied as a hospital's own export would lie on its disk; everything after that is done by the real commands.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

BRAINS_PER_SITE = 4
"""Few: what is tested is the way between the sites, and a brain is a brain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """A site, its export, and how `panfm data index` reads that."""

    site: str
    organ: str
    index_options: tuple[str, ...]


_HEARTS = ("--scan", "{subject}_{visit}", "--label-map", "{subject}_{visit}_gt=heart")
_BRAINS = ("--scan", "{organ}/{subject}")
HOSPITALS = (
    Hospital(site="cardiac", organ="heart", index_options=_HEARTS),
    Hospital(site="east", organ="brain", index_options=_BRAINS),
    Hospital(site="north", organ="brain", index_options=_BRAINS),
    Hospital(site="south", organ="brain", index_options=_BRAINS),
)


def lay_out(hospital: Hospital, data: Path, export: Path) -> None:
    """Copy the hospital's scans from the folder of real data into its export."""
    if hospital.organ == "heart":
        export.mkdir(parents=True, exist_ok=True)
        for path in sorted((data / "heart_sunnybrook").glob("*_E[DS]*.nii.gz")):
            shutil.copyfile(path, export / path.name)
        return
    (export / "brain").mkdir(parents=True, exist_ok=True)
    brain_sites = [each.site for each in HOSPITALS if each.organ == "brain"]
    first = brain_sites.index(hospital.site) * BRAINS_PER_SITE
    paths = sorted((data / "brain_ixi").glob("*_T1brain.nii.gz"))[first : first + BRAINS_PER_SITE]
    for path in paths:
        shutil.copyfile(path, export / "brain" / path.name.replace("_T1brain", ""))
