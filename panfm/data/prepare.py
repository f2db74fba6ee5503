"""One pass from a site's scans to the prepared store that training reads.

Each scan is checked, located, normalised, resampled once to its organ's grid and written under a temporary name that
is then renamed: a pass that is killed leaves whole files only, and the next one goes on where it was. What was done to
a scan lies beside it in a `.json`; a scan is redone when its files, its row or the settings changed, and not otherwise.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panfm.config import OrganGrid, PrepareConfig
from panfm.data.geometry import (
    Region,
    Voxels,
    bounding_box,
    box_region,
    centre_of,
    region_on_grid,
    resample,
    target_affine,
)
from panfm.data.intensity import BACKGROUND, foreground, normalise
from panfm.data.manifest import ScanRow, read_scan_table
from panfm.data.nifti import Scan, file_digest, read_label_map, read_scan
from panfm.data.store import REFUSED, STATEMENT, PreparedStore, StoreEntry, write_csv, write_table
from panfm.errors import DataError, ScanError

PREPARE_VERSION = 1
"""Raised whenever the same scan and settings would give other voxels, so that old stores are redone."""

_SCANS_PER_WORKER = 32
"""Another process costs a second or two to start (numpy, scipy, nibabel), as much as some dozens of small scans."""

_STEPS = (
    "read and checked one NIfTI volume",
    "organ located by label map, box or foreground; grid centred on its bounding box in the world",
    "clipped and z-scored over the foreground of the organ's bounding box; background set to a fixed value",
    "resampled once, linearly with anti-aliasing, to the organ's upright RAS+ grid with a margin",
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
        answers = _run(jobs, workers, on_scan)
        return _finish(store_folder, answers, grids, config)
    except OSError as error:
        raise DataError(
            f"cannot write the store {store_folder} ({error.strerror}); free space or choose another folder"
        ) from error


def prepare_scan(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> NDArray[np.float16]:
    """One scan as it stands in the store: shape of the grid plus the margin, RAS+, normalised.

    Raises: DataError when the scan or its label map cannot be used.
    """
    scan = read_scan(row.path)
    tissue = foreground(scan.voxels, row.window)
    organ = _organ_region(row, scan, tissue)
    if not organ.any():
        raise DataError(f"{row.path.name}: nothing of the {row.organ} found; check label ids, box and window")
    # The box and not the drawn organ alone: the organ's surroundings keep their contrast, and scans located by a box
    # come out like scans located by a label map.
    box = bounding_box(organ)
    reference = scan.voxels[box][tissue[box]]
    voxels = normalise(scan.voxels, tissue, reference, config.clip_percentiles)
    return _on_grid(voxels, scan.affine, centre_of(organ, scan.affine), grid, config.margin_voxels)


def _organ_region(row: ScanRow, scan: Scan, tissue: Region) -> Region:
    if row.label_map:
        drawn = np.zeros(scan.voxels.shape, dtype=np.bool_)
        for path in row.label_map:
            drawn |= _labelled(path, row.label_ids, scan)
        return drawn
    return tissue if row.box is None else box_region(row.box, scan.voxels.shape)


def _labelled(path: Path, label_ids: Sequence[int], scan: Scan) -> Region:
    labels = read_label_map(path)
    region = np.isin(labels.voxels, label_ids) if label_ids else labels.voxels != 0
    return region_on_grid(region, labels.affine, scan.voxels.shape, scan.affine)


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
    for job in jobs:
        answer = _on_record(job)
        if answer is None:
            waiting.append(job)
        else:
            yield answer
    processes = min(workers, math.ceil(len(waiting) / _SCANS_PER_WORKER))
    yield from map(_prepare, waiting) if processes <= 1 else _in_parallel(waiting, processes)


def _in_parallel(jobs: Sequence[_Job], processes: int) -> Iterator[StoreEntry | _Refused]:
    # spawn: a fork of a process in which torch runs threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(_prepare, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_record(job: _Job) -> StoreEntry | _Refused | None:
    """The entry of a scan that stands in the store, whole, made from these files with these settings; else None."""
    try:
        source = _source_digest(job.row)
    except DataError as error:
        return _refusal(job.row, error)
    path = job.store_folder / _file_name(job.row)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    current = _record(source, settings_digest(job.row, job.grid, job.config), digest)
    return _entry(job, source, digest) if record == current else None


def _prepare(job: _Job) -> StoreEntry | _Refused:
    """Prepare and store one scan; a scan that cannot be used is an answer, too."""
    try:
        source = _source_digest(job.row)
        volume = prepare_scan(job.row, job.grid, job.config)
    except DataError as error:
        return _refusal(job.row, error)
    return _entry(job, source, _store(job, volume, source))


def settings_digest(row: ScanRow, grid: OrganGrid, config: PrepareConfig) -> str:
    """SHA-256 of everything besides the files that decides a prepared volume's voxels."""
    choices = {
        "version": PREPARE_VERSION,
        "label_ids": row.label_ids,
        "box": row.box,
        "window": row.window,
        "grid": asdict(grid),
        "config": asdict(config),
    }
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


def _source_digest(row: ScanRow) -> str:
    digests = [file_digest(path) for path in (row.path, *row.label_map)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _file_name(row: ScanRow) -> str:
    # "@" cannot stand in a pseudonym, so two scans never share a file.
    return f"{row.organ}/{row.subject}@{row.visit}.npy" if row.visit else f"{row.organ}/{row.subject}.npy"


def _record(source: str, settings: str, digest: str) -> dict[str, str]:
    return {"source_digest": source, "settings_digest": settings, "digest": digest}


def _store(job: _Job, volume: NDArray[np.float16], source: str) -> str:
    """Write the volume, then its record; a record without its own volume never counts."""
    buffer = io.BytesIO()
    np.save(buffer, volume, allow_pickle=False)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    path = job.store_folder / _file_name(job.row)
    _write_atomically(path, buffer.getvalue())
    _write_atomically(
        path.with_suffix(".json"), _as_json(_record(source, settings_digest(job.row, job.grid, job.config), digest))
    )
    return digest


def _as_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
    temporary.replace(path)


def _entry(job: _Job, source: str, digest: str) -> StoreEntry:
    margin = 2 * job.config.margin_voxels
    x, y, z = job.grid.shape
    sx, sy, sz = job.grid.spacing_mm
    return StoreEntry(
        subject=job.row.subject,
        visit=job.row.visit,
        organ=job.row.organ,
        file=_file_name(job.row),
        shape=(x + margin, y + margin, z + margin),
        spacing_mm=(float(sx), float(sy), float(sz)),
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
    _write_refused(store_folder / REFUSED, refused)
    if not entries:
        raise DataError(f"none of {len(refused)} scans can be used: {refused[0].reason}; see {REFUSED} of the store")
    write_table(store_folder, entries)
    _write_atomically(store_folder / STATEMENT, _as_json(_statement(grids, config)))
    _forget(store_folder, {entry.file for entry in entries}, tuple(grids))
    return PreparedStore.open(store_folder)


def _write_refused(path: Path, refused: Sequence[_Refused]) -> None:
    cells = [[r.row.subject, r.row.visit, r.row.organ, str(r.row.path), r.code, r.reason] for r in refused]
    write_csv(path, ("subject", "visit", "organ", "path", "code", "reason"), sorted(cells))


def _statement(grids: Mapping[str, OrganGrid], config: PrepareConfig) -> dict[str, Any]:
    settings = {
        "version": PREPARE_VERSION,
        "background": BACKGROUND,
        "grids": {organ: asdict(grid) for organ, grid in grids.items()},
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
        for kind in ("npy", "json"):
            for half in (store_folder / organ).glob(f"*.{kind}.tmp"):  # of a pass that was killed
                half.unlink()
        for record in sorted((store_folder / organ).glob("*.json")):
            volume = record.with_suffix(".npy")
            if f"{organ}/{volume.name}" not in kept:
                volume.unlink(missing_ok=True)
                record.unlink()
