"""What the tests of the index share: small scans and label maps, a key, and the index in the words of its command."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from panfm.data.index.build import IndexRequest, SiteIndex, build_index
from panfm.data.index.label_lists import label_pattern
from panfm.data.index.layout import Layout
from panfm.data.index.organ_rules import organ_rules
from panfm.data.index.patterns import compile_pattern
from panfm.data.index.pseudonym import PseudonymKey
from panfm.organs import SEVEN_ORGANS

WriteVolume = Callable[..., Path]
Index = Callable[..., SiteIndex]

KEY = PseudonymKey(bytes(range(32)))


@pytest.fixture
def write_volume(tmp_path: Path) -> WriteVolume:
    """Write a NIfTI file below the test's folder: noise, or a label map with the given labels."""

    def write(name: str, labels: tuple[int, ...] = (), **header: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng(0).integers(1, 99, (6, 6, 6), dtype=np.uint8)
        if labels:
            voxels[:] = 0
            voxels.flat[: len(labels)] = labels
        image_class: Any = nib.Nifti1Image
        image = image_class(voxels, np.diag([2.0, 2.0, 2.0, 1.0]))
        for field, text in header.items():
            image.header[field] = text
        image.to_filename(path)
        return path

    return write


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Index a folder of the test, by the texts of the command line's options."""

    def run(
        place: str,
        layout: str = "auto",
        organ: tuple[str, ...] = (),
        scan: tuple[str, ...] = (),
        label_map: tuple[str, ...] = (),
        **options: Any,
    ) -> SiteIndex:
        request = IndexRequest(
            source=tmp_path / place,
            layout=Layout(layout),
            organs=organ_rules(organ, SEVEN_ORGANS),
            scan_patterns=tuple(compile_pattern(text) for text in scan),
            label_patterns=tuple(label_pattern(text, SEVEN_ORGANS) for text in label_map),
            **options,
        )
        return build_index(request, KEY)

    return run


def listed(found: SiteIndex) -> set[tuple[str, str, str, str]]:
    """Subject, visit, organ and file name of each row."""
    return {(row.subject, row.visit, row.organ, row.path.name) for row in found.rows}


def reasons(found: SiteIndex) -> dict[str, str]:
    """Path -> code of what was skipped."""
    return {one.path: one.code for one in found.skipped}
