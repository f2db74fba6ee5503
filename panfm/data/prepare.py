"""One pass from a site's scans to the prepared store that training reads.

Each scan is checked, located, normalised, resampled once to its organ's grid and written under a temporary name that
is then renamed: a pass that is killed leaves whole files only, and the next one goes on where it was. What was done to
a scan lies beside it in a `.json`; a scan is redone when its files, its row or the settings changed, and not otherwise.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panfm.config import OrganGrid, PrepareConfig, Spacing
from panfm.data.geometry import (
    Region,
    Voxels,
    bounding_box,
    centre_of,
    resample,
    target_affine,
)
from panfm.data.intensity import BACKGROUND, normalise
from panfm.data.locate import locate
from panfm.data.manifest import ScanRow, read_scan_table
from panfm.data.native import Crop, crop_shape, grid_settings, native_crop
from panfm.data.processes import over_processes
from panfm.data.reading import file_digest, read_scan
from panfm.data.store import REFUSED, STATEMENT, PreparedStore, StoreEntry, write_csv, write_table
from panfm.durable import write_file
from panfm.errors import DataError, ScanError

PREPARE_VERSION = 1
"""Raised whenever the same scan and settings would give other voxels, so that old stores are redone."""

_BYTES_PER_PROCESS = 4 << 20
"""Another process costs a second to start, in which one prepares about as many bytes of compressed scans (125 brains of
21 MB take 5 s): fewer bytes than this are not worth one."""

_STEPS = (
    "read and checked one NIfTI volume",
    "organ located by label map, box or foreground; grid centred on its bounding box in the world",
    "clipped and z-scored over the foreground of the organ's bounding box; background set to a fixed value",
    "resampled once, linearly with anti-aliasing, to the organ's upright RAS+ grid with a margin; an organ whose spacing is "
    "native was cut out in its scan's own voxels instead, axes permuted and flipped to the closest to RAS+, oblique as scanned",
    "stored as float16",
)


@dataclass(frozen=True, slots=True)
class _Job:
    """One row of the table with everything that a worker process needs."""

    row: ScanRow
    grid: OrganGrid
    config: PrepareConfig
    store_folder: Path


@dataclass(frozen=True, slots=True)
class _Refused:
    row: ScanRow
    code: str
    reason: str


def _refusal(row: ScanRow, error: DataError) -> _Refused:
    return _Refused(row, error.code if isinstance(error, ScanError) else "unusable", str(error))


def prepare_store(
    table_folder: Path,
    store_folder: Path,
    grids: Mapping[str, OrganGrid],
    config: PrepareConfig,
    *,
    workers: int = 1,
    on_scan: Callable[[int, int], None] | None = None,
) -> PreparedStore:
    """Bring a prepared store up to date with a site's `scans.csv`.

    Args:
        table_folder: folder of the table.
        store_folder: folder of the store; made if it is not there.
        grids: the study's organs with their grids; stored volumes have `margin_voxels` more on every side.
        config: margin and clipping.
        workers: most processes; few scans are prepared in this one. The result does not depend on it.
        on_scan: called after each scan with (scans done, scans in all).
    Raises: DataError when the table is wrong, the store cannot be written, or no scan at all can be used. Single
        scans that cannot be used are left out and listed in `refused.csv`.
    """
    rows = read_scan_table(table_folder / "scans.csv", tuple(grids))
    jobs = [_Job(row, grids[row.organ], config, store_folder) for row in rows]
    try:
        _make_folders(store_folder, {row.organ for row in rows})
        with _alone_in(store_folder):
            answers = _run(jobs, workers, on_scan)
            return _finish(store_folder, answers, grids, config)
    except OSError as error:
        raise DataError(
            f"cannot write the store {store_folder} ({error.strerror}); scans prepared so far are whole and stay: "
            "free space or choose another folder, and run the same command again"
        ) from error


@contextmanager
def _alone_in(store_folder: Path) -> Iterator[None]:
    """Keep other passes out of the store; the lock ends with this process, however that ends."""
    descriptor = os.open(store_folder, os.O_RDONLY)
    try:
        _lock(descriptor, store_folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, store_folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another process is preparing {store_folder}; wait until it is done, or stop it") from error
    except OSError:
        return  # some network file systems cannot lock a folder; digests still tell what another pass wrote


def prepare_scan(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> NDArray[np.float16]:
    """One scan of a resampled organ as it stands in the store: shape of the grid plus the margin, RAS+, normalised.

    Raises: DataError when the scan or its label map cannot be used.
    """
    found = _found(row, config)
    return _on_grid(found.voxels, found.affine, centre_of(found.organ, found.affine), grid, config.margin_voxels)


def prepare_native(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> Crop:
    """One scan of a native organ: the same, but in the scan's own voxels.

    Raises: DataError when the scan or its label map cannot be used.
    """
    found = _found(row, config)
    return native_crop(found.voxels, found.affine, found.organ, grid, config.margin_voxels, BACKGROUND)


@dataclass(frozen=True, slots=True)
class _Found:
    """A normalised scan, in the file's axis order, and where the organ is in it."""

    voxels: Voxels
    affine: NDArray[np.float64]
    organ: Region


def _found(row: ScanRow, config: PrepareConfig) -> _Found:
    scan = read_scan(row.path, row.volume)
    located = locate(row, scan)
    # The box and not the drawn organ alone: the organ's surroundings keep their contrast, and scans located by a box
    # come out like scans located by a label map.
    box = bounding_box(located.organ)
    reference = scan.voxels[box][located.tissue[box]]
    voxels = normalise(scan.voxels, located.tissue, reference, config.clip_percentiles)
    return _Found(voxels, scan.affine, located.organ)


def _on_grid(
    voxels: Voxels, affine: NDArray[np.float64], centre_mm: NDArray[np.float64], grid: OrganGrid, margin: int
) -> NDArray[np.float16]:
    shape = [side + 2 * margin for side in grid.shape]
    upright = target_affine(centre_mm, shape, grid.spacing_mm)
    return resample(voxels, affine, upright, shape, BACKGROUND).astype(np.float16)


def _run(jobs: Sequence[_Job], workers: int, on_scan: Callable[[int, int], None] | None) -> list[StoreEntry | _Refused]:
    answers = []
    for done, answer in enumerate(_answers(jobs, workers), start=1):
        answers.append(answer)
        if on_scan is not None:
            on_scan(done, len(jobs))
    return answers


def _answers(jobs: Sequence[_Job], workers: int) -> Iterator[StoreEntry | _Refused]:
    """What stands in the store already is answered here; the rest is prepared, by several processes if it is worth it."""
    waiting = []
    with ThreadPoolExecutor(workers) as readers:  # hashing lets go of Python's lock
        for job, answer in zip(jobs, readers.map(_on_record, jobs), strict=True):
            if answer is None:
                waiting.append(job)
            else:
                yield answer
    processes = 1 + sum(_source_bytes(job.row) for job in waiting) // _BYTES_PER_PROCESS
    yield from over_processes(_prepare, waiting, min(workers, len(waiting), processes))


def _on_record(job: _Job) -> StoreEntry | _Refused | None:
    """The entry of a scan that stands in the store, whole, made from these files with these settings; else None."""
    try:
        source = _source_digest(job.row)
    except DataError as error:
        return _refusal(job.row, error)
    path = job.store_folder / _file_name(job.row)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        x, y, z = (float(step) for step in record["spacing_mm"])
        digest = file_digest(path)
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None
    current = _record(source, settings_digest(job.row, job.grid, job.config), digest, (x, y, z))
    return _entry(job, source, digest, (x, y, z)) if record == current else None


def _prepare(job: _Job) -> StoreEntry | _Refused:
    """Prepare and store one scan; a scan that cannot be used is an answer, too."""
    try:
        source = _source_digest(job.row)
        crop = _prepared(job)
    except DataError as error:
        return _refusal(job.row, error)
    return _entry(job, source, _store(job, crop, source), crop.spacing_mm)


def _prepared(job: _Job) -> Crop:
    if job.grid.spacing is Spacing.native:
        return prepare_native(job.row, job.grid, job.config)
    x, y, z = (float(step) for step in job.grid.spacing_mm)
    return Crop(prepare_scan(job.row, job.grid, job.config), (x, y, z))


def settings_digest(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> str:
    """SHA-256 of everything besides the files that decides a prepared volume's voxels."""
    choices = {
        "version": PREPARE_VERSION,
        "volume": row.volume,
        "label_ids": row.label_ids,
        "box": row.box,
        "window": row.window,
        "grid": grid_settings(grid),
        "config": asdict(config),
    }
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def _source_digest(row: ScanRow) -> str:
    digests = [file_digest(path) for path in (row.path, *row.label_map)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _source_bytes(row: ScanRow) -> int:
    """Size of the scan and its label maps; a file that is gone counts as nothing, and is refused when it is read."""
    files = [file for path in (row.path, *row.label_map) for file in (path.iterdir() if path.is_dir() else (path,))]
    return sum(file.stat().st_size for file in files if file.exists())


def _file_name(row: ScanRow) -> str:
    # "@" cannot stand in a pseudonym, so two scans never share a file.
    return f"{row.organ}/{row.subject}@{row.visit}.npy" if row.visit else f"{row.organ}/{row.subject}.npy"


def _record(source: str, settings: str, digest: str, spacing_mm: Sequence[float]) -> dict[str, Any]:
    return {
        "source_digest": source,
        "settings_digest": settings,
        "digest": digest,
        "spacing_mm": list(spacing_mm),
    }


def _store(job: _Job, crop: Crop, source: str) -> str:
    """Write the volume, then its record; a record without its own volume never counts."""
    buffer = io.BytesIO()
    np.save(buffer, crop.voxels.astype(np.float16), allow_pickle=False)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = job.store_folder / _file_name(job.row)
    write_file(path, buffer.getvalue(), flushed=False)
    record = _record(source, settings_digest(job.row, job.grid, job.config), digest, crop.spacing_mm)
    write_file(path.with_suffix(".json"), _as_json(record), flushed=False)
    return digest


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _entry(job: _Job, source: str, digest: str, spacing_mm: tuple[float, float, float]) -> StoreEntry:
    margin = 2 * job.config.margin_voxels
    x, y, z = crop_shape(job.grid, spacing_mm)
    return StoreEntry(
        subject=job.row.subject,
        visit=job.row.visit,
        organ=job.row.organ,
        file=_file_name(job.row),
        shape=(x + margin, y + margin, z + margin),
        spacing_mm=spacing_mm,
        native=job.grid.spacing is Spacing.native,
        source_digest=source,
        digest=digest,
        split=job.row.split,
    )


def _make_folders(store_folder: Path, organs: set[str]) -> None:
    for organ in sorted(organs):
        (store_folder / organ).mkdir(parents=True, exist_ok=True)


def _finish(
    store_folder: Path, answers: Sequence[StoreEntry | _Refused], grids: Mapping[str, OrganGrid], config: PrepareConfig
) -> PreparedStore:
    entries = [answer for answer in answers if isinstance(answer, StoreEntry)]
    refused = [answer for answer in answers if isinstance(answer, _Refused)]
    # After a power cut the table must not name a file that is half there. A scan's own files are flushed here, together: one
    # of them that a cut leaves torn is found by its digest, and redone.
    os.sync()
    _write_refused(store_folder / REFUSED, refused)
    if not entries:
        raise DataError(f"none of {len(refused)} scans can be used: {refused[0].reason}; see {REFUSED} of the store")
    write_table(store_folder, entries)
    write_file(store_folder / STATEMENT, _as_json(_statement(grids, config)))
    _forget(store_folder, {entry.file for entry in entries}, tuple(grids))
    return PreparedStore.open(store_folder)


def _write_refused(path: Path, refused: Sequence[_Refused]) -> None:
    cells = [[r.row.subject, r.row.visit, r.row.organ, str(r.row.path), r.code, r.reason] for r in refused]
    write_csv(path, ("subject", "visit", "organ", "path", "code", "reason"), sorted(cells))


def _statement(grids: Mapping[str, OrganGrid], config: PrepareConfig) -> dict[str, Any]:
    settings = {
        "version": PREPARE_VERSION,
        "background": BACKGROUND,
        "grids": {organ: grid_settings(grid) for organ, grid in grids.items()},
        "prepare": asdict(config),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    versions = {name: metadata.version(name) for name in ("nibabel", "numpy", "scipy")}
    return {
        "steps": _STEPS,
        "settings": settings,
        "settings_digest": digest,
        "versions": {"python": platform.python_version(), **versions},
    }


def _forget(store_folder: Path, kept: set[str], organs: Sequence[str]) -> None:
    """Remove volumes that the table no longer names: a subject who withdraws must not stay in the store."""
    for organ in organs:
        for path in sorted((store_folder / organ).glob("*")):
            half = path.name.endswith((".npy.tmp", ".json.tmp"))  # of a pass that was killed
            ours = path.suffix in (".npy", ".json")
            if half or (ours and f"{organ}/{path.stem}.npy" not in kept):
                path.unlink()
