"""What the tests of the data room share: scans and prepared stores made on the spot."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from panfm.data.store import PreparedStore, StoreEntry, write_table

WriteScan = Callable[..., Path]
WriteStore = Callable[..., PreparedStore]


@pytest.fixture
def write_scan() -> WriteScan:
    """Write voxels as NIfTI; without an affine, 2 mm RAS+."""

    def write(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64] | None = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        image_class: Any = nib.Nifti1Image
        image_class(voxels, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine).to_filename(path)
        return path

    return write


@pytest.fixture
def write_store(tmp_path: Path) -> WriteStore:
    """A store of 8-cubed volumes, margin included, spacing 4 mm, from (subject, visit, organ, split) and an int each."""

    def write(*scans: tuple[str, str, str, str]) -> PreparedStore:
        entries = []
        for number, (subject, visit, organ, split) in enumerate(scans):
            file = f"{organ}/{subject}@{visit}.npy"
            (tmp_path / organ).mkdir(exist_ok=True)
            volume = np.random.default_rng(number).standard_normal((8, 8, 8)).astype(np.float16)
            np.save(tmp_path / file, volume)
            digest = hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
            entry = StoreEntry(
                subject=subject,
                visit=visit,
                organ=organ,
                file=file,
                shape=(8, 8, 8),
                spacing_mm=(4.0, 4.0, 4.0),
                source_digest="0" * 64,
                digest=digest,
                split=split,
            )
            entries.append(entry)
        write_table(tmp_path, entries)
        return PreparedStore.open(tmp_path)

    return write
