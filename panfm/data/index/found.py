"""What the layouts give to the index: scans with the names that the site has for them, and what was not understood.

A `FoundScan` holds real identifiers and lives in memory only; `build.py` turns it into rows under pseudonyms.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from panfm.data.manifest import VoxelBox


@dataclass(frozen=True, slots=True)
class LabelList:
    """Where each organ is in a label map, by number or by the name of its own mask file."""

    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelMap:
    """One label map of a scan."""

    path: Path
    labels: LabelList | None = None
    """What its numbers mean; None: all that is not zero is the organ that the scan is listed for."""
    name: str = ""
    """The structure that the whole file is a mask of; empty: its numbers say so."""
    organ: str = ""
    """The organ that the whole file is a mask of, where the folder or the file is named by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundScan:
    """One scan as the site names it."""

    person: str
    path: Path
    visit: str = ""
    organ: str = ""
    """Empty: its label maps say which organs it shows."""
    label_maps: tuple[LabelMap, ...] = ()
    label_ids: tuple[int, ...] = ()
    box: VoxelBox | None = None
    window: tuple[float, float] | None = None
    volume: int | None = None
    split: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Skipped:
    """A file or a row that is not in the table."""

    path: str
    """As the site named it; line and table for a row."""
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Found:
    """What one layout made of a folder."""

    scans: tuple[FoundScan, ...] = ()
    skipped: tuple[Skipped, ...] = ()
