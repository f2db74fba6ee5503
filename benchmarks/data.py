"""How fast do scans become training data, and how little does it take? Each line says what it is held to.

Run `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/data.py [--quick]` on a machine that does nothing else; it prints the
table and writes it to `benchmarks/data.md`, with the machine and the commit (with --quick it only prints).

- *prepare*: the 125 brains of the real scans, by `prepare_store` in a process of its own that has already loaded its
  libraries, one and two workers in turn. On the grids of recipe `real` the whole pass is so short that the second worker's
  start (a second of imports) is a large part of it, so the gain of a second worker is also told on a grid of 2 mm.
- *crops*: cubes at random places of random brains of the 2 mm store, as float32 tensors: from the store, from a bare
  `np.load(..., mmap_mode="c")` whose maps are open, too, and from the `.nii.gz` files by nibabel; warm page cache, the same
  order of scans. A store hashes a file before its first crop: that is told by itself, once for each scan and round.
- *batch*: peak of Python's and numpy's memory while 16 subjects with seven organs are read, over the bytes of the batch.
- *loader*: batches that one thread reads and augments, beside the training steps of the tiny model on one such batch.
- *large store*: seven scans of each of 10,000 subjects, as sparse files.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.machine import provenance
from panfm.config import AugmentConfig, ModelConfig, OrganGrid, PretrainConfig, Recipe
from panfm.data.dataset import SubjectDataset
from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.prefetch import prefetched
from panfm.data.store import PreparedStore, StoreEntry, write_table
from panfm.models.build import initial_parameters
from panfm.organs import SEVEN_ORGANS
from panfm.pretrain.local_round import _LocalTraining, _Tally
from panfm.randomness import stream
from simulation.real_cohort import BRAIN_WINDOW

ROOT = Path(__file__).resolve().parents[1]
QUICK = "--quick" in sys.argv
BRAINS = 24 if QUICK else 125
REPEATS = 1 if QUICK else 3
CROPS = 200 if QUICK else 2000
STEPS = 3 if QUICK else 20
SUBJECTS = 500 if QUICK else 10_000
BATCH_SIZE = 16
MARGIN = 2

COARSE = OrganGrid(shape=[32, 32, 32], spacing_mm=[5.0, 6.0, 5.0])
"""Of recipe `real`."""
FINE = OrganGrid(shape=[72, 88, 72], spacing_mm=[2.0, 2.0, 2.0])
ALL_CHANGES = AugmentConfig(
    rotation_deg=15, zoom=0.1, translation_mm=5, flip=[0.0, 0.5, 0.5], blur_mm=5, bias=0.2, gamma=0.3
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table."""

    question: str
    held_to: str
    measured: str
    holds: bool | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "yes", False: "**NO**"}[self.holds]
        return f"| {self.question} | {self.held_to} | {self.measured} | {verdict} |"


# ---- prepare --------------------------------------------------------------------------------------------------------

_PASS = """
import sys, time
from pathlib import Path
from panfm.config import OrganGrid, PrepareConfig
from panfm.data.prepare import prepare_store
site, store, workers, shape, spacing = sys.argv[1:]
grid = OrganGrid(shape=[int(n) for n in shape.split()], spacing_mm=[float(n) for n in spacing.split()])
start = time.perf_counter()
prepare_store(Path(site), Path(store), {"brain": grid}, PrepareConfig(), workers=int(workers))
print(time.perf_counter() - start)
"""


def prepare_seconds(site: Path, store: Path, workers: int, grid: OrganGrid) -> float:
    """Wall seconds of one pass, without Python's own start."""
    shape, spacing = (" ".join(map(str, values)) for values in (grid.shape, grid.spacing_mm))
    command = [sys.executable, "-c", _PASS, str(site), str(store), str(workers), shape, spacing]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def prepare_lines(site: Path, folder: Path) -> Iterator[Line]:
    """Both grids, one and two workers in turn, and a pass that finds nothing to do."""
    for name, grid in (("recipe `real`", COARSE), ("2 mm, 72 x 88 x 72", FINE)):
        spent: dict[int, list[float]] = {1: [], 2: []}
        for repeat, workers in itertools.product(range(REPEATS), (1, 2)):
            spent[workers].append(prepare_seconds(site, folder / f"{name[:4]}-{workers}-{repeat}", workers, grid))
        one, two = statistics.median(spent[1]), statistics.median(spent[2])
        held = two < 40 if grid is COARSE else None
        yield Line(
            f"prepare {BRAINS} brains, {name}, 2 workers", "under 40 s" if grid is COARSE else "", f"{two:.2f} s", held
        )
        yield Line(
            f"the same with 1 worker over 2 workers, {name}", "at least 1.7", f"{one:.2f} s / {two:.2f} s = {one / two:.2f}",
            one / two >= 1.7,
        )  # fmt: skip
    again = prepare_seconds(site, folder / f"{name[:4]}-2-0", 2, grid)
    yield Line("the same again, nothing changed: all is hashed", "", f"{again:.2f} s")


# ---- crops ----------------------------------------------------------------------------------------------------------


def per_call(work: Callable[[int], object], times: int) -> float:
    """Median seconds of a call; each number once."""
    spent = []
    for number in range(times):
        start = time.perf_counter()
        work(number)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def crop_lines(site: Path, store_folder: Path) -> Iterator[Line]:
    """Cubes of 32 and 64 voxels."""
    store = PreparedStore.open(store_folder)
    scans = {row.subject: row.path for row in _brain_rows(site)}
    draw = np.random.default_rng(0)
    order = draw.integers(len(store.entries), size=CROPS)
    first = per_call(lambda n: store.crop(store.entries[n], (0, 0, 0), (1, 1, 1)), len(store.entries))
    bare = [np.load(store_folder / entry.file, mmap_mode="c") for entry in store.entries]
    load: Any = nib.load
    for side in (32, 64):
        starts = [draw.integers(0, np.array(store.entries[n].shape) - side + 1).tolist() for n in order]

        def from_store(n: int, side: int = side, starts: list[list[int]] = starts) -> object:
            return torch.from_numpy(store.view(store.entries[order[n]], starts[n], (side, side, side))).float()

        def from_map(n: int, side: int = side, starts: list[list[int]] = starts) -> object:
            x, y, z = starts[n]
            return torch.from_numpy(bare[order[n]][x : x + side, y : y + side, z : z + side]).float()

        def from_scan(n: int, side: int = side) -> object:
            voxels = np.asanyarray(load(scans[store.entries[order[n]].subject]).dataobj)
            return torch.from_numpy(voxels[:side, :side, :side].astype(np.float32))

        for work in (from_store, from_map):
            per_call(work, CROPS)  # warm
        by_store, by_map, by_scan = (
            per_call(from_store, CROPS),
            per_call(from_map, CROPS),
            per_call(from_scan, CROPS // 20),
        )
        yield Line(
            f"crop of {side} voxels a side: `.nii.gz` over store",
            "at least 20",
            f"{1e3 * by_scan:.2f} ms / {1e3 * by_store:.3f} ms = {by_scan / by_store:.0f}",
            by_scan / by_store >= 20,
        )
        yield Line(
            f"crop of {side} voxels a side: store over bare memory map",
            "at most 1.5",
            f"{1e3 * by_store:.3f} ms / {1e3 * by_map:.3f} ms = {by_store / by_map:.2f}",
            by_store / by_map <= 1.5,
        )
    size_mb = (store_folder / store.entries[0].file).stat().st_size / 1e6
    yield Line(f"first crop of a scan of {size_mb:.1f} MB, hashed once a round", "", f"{1e3 * first:.2f} ms")


# ---- batches --------------------------------------------------------------------------------------------------------


def write_store(folder: Path, subjects: int, *, sparse: bool) -> PreparedStore:
    """Subjects with seven organs of 32 voxels a side and a margin: noise, or empty files that take no room."""
    side = 32 + 2 * MARGIN
    sides = (side, side, side)
    digest = _sparse_digest(folder, sides) if sparse else ""
    entries = []
    for number, organ in itertools.product(range(subjects), SEVEN_ORGANS):
        path = folder / organ / f"sub-{number:05d}.npy"
        path.parent.mkdir(exist_ok=True)
        if sparse:
            _write_sparse(path, sides)
        else:
            np.save(path, np.random.default_rng(number).standard_normal(sides).astype(np.float16))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(
            StoreEntry(
                subject=path.stem,
                visit="",
                organ=organ,
                file=f"{organ}/{path.name}",
                shape=sides,
                spacing_mm=(4.0, 4.0, 4.0),
                source_digest=hashlib.sha256(str(path).encode()).hexdigest(),  # as different as real ones
                digest=digest,
            )
        )
    write_table(folder, entries)
    return PreparedStore.open(folder)


def _write_sparse(path: Path, shape: tuple[int, int, int]) -> None:
    with path.open("wb") as stream:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.truncate(stream.tell() + 2 * int(np.prod(shape)))


def _sparse_digest(folder: Path, shape: tuple[int, int, int]) -> str:
    _write_sparse(folder / "one.npy", shape)
    return hashlib.sha256((folder / "one.npy").read_bytes()).hexdigest()


def batch_line(dataset: SubjectDataset) -> Line:
    """Memory of one batch."""
    indices, draws = range(BATCH_SIZE), [stream(0, number) for number in range(BATCH_SIZE)]
    dataset.batch(indices, draws, MARGIN)  # maps are opened
    tracemalloc.start()
    batch = dataset.batch(indices, draws, MARGIN)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    returned = sum(volumes.nbytes for volumes in batch.volumes.values())
    return Line(
        f"batch of {BATCH_SIZE} subjects with 7 organs: peak over what is returned",
        "at most 3",
        f"{peak / 1e6:.1f} MB / {returned / 1e6:.1f} MB = {peak / returned:.2f}",
        peak <= 3 * returned,
    )


def loader_lines(dataset: SubjectDataset, augment: AugmentConfig, name: str) -> Iterator[Line]:
    """Batches a second of the loader alone and of the tiny model alone, and of both with and without a thread that loads."""
    recipe = Recipe(
        threads=1,
        organs={organ: OrganGrid() for organ in SEVEN_ORGANS},
        model=ModelConfig(),
        pretrain=PretrainConfig(steps_per_round=STEPS, batch_size=BATCH_SIZE, augment=augment),
    )
    torch.set_num_threads(recipe.threads)
    start = initial_parameters(recipe.model, recipe.organs, 0)
    local = _LocalTraining(start, start, dataset, recipe, site="speed", round_number=1, device="cpu")
    indices = list(range(BATCH_SIZE))
    views = local.load(0, indices)
    local.step(0, views, _Tally())
    load = per_call(lambda step: local.load(step, indices), 5 * STEPS)
    compute = per_call(lambda step: local.step(step, views, _Tally()), STEPS)
    yield Line(
        f"loader only, beside compute only ({name})",
        "reported",
        f"{1 / load:.1f} batches/s, {1 / compute:.2f} steps/s: loading takes {load / compute:.1%} of a step",
    )
    both = {}
    for threads in (0, 1):
        began = time.perf_counter()
        for step, loaded in enumerate(prefetched(lambda step: local.load(step, indices), STEPS, threads)):
            local.step(step, loaded, _Tally())
        both[threads] = STEPS / (time.perf_counter() - began)
    yield Line(
        f"both, without and with one thread that loads ahead ({name})",
        "",
        f"{both[0]:.2f} and {both[1]:.2f} steps/s",
    )


# ---- a large store --------------------------------------------------------------------------------------------------


def large_lines(folder: Path) -> Iterator[Line]:
    """Opening the table, its memory, and indexing its subjects."""
    write_store(folder, SUBJECTS, sparse=True)
    spent = min(per_call(lambda _: PreparedStore.open(folder), 1) for _ in range(3))
    scans = 7 * SUBJECTS
    yield Line(f"open a store of {SUBJECTS:,} subjects, {scans:,} scans", "under 1 s", f"{spent:.2f} s", spent < 1)
    tracemalloc.start()
    store = PreparedStore.open(folder)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    disk = (folder / "table.csv").stat().st_size / 1e6
    yield Line(
        "its table, in memory at its peak (and on disk)", "100 MB", f"{peak:.0f} MB ({disk:.0f} MB)", peak <= 100
    )
    grids = {organ: OrganGrid() for organ in SEVEN_ORGANS}
    index = per_call(lambda _: SubjectDataset(store, SEVEN_ORGANS, grids), 1)
    yield Line("index its subjects for training, once a round", "", f"{index:.2f} s")


# ---- the table ------------------------------------------------------------------------------------------------------


def _brain_rows(site: Path) -> list[ScanRow]:
    data = Path(os.environ.get("PANFM_REAL_DATA", ROOT.parent / "shared" / "data"))
    paths = sorted((data / "brain_ixi").glob("*.nii.gz"))[:BRAINS]
    if not paths:
        sys.exit(f"no brains in {data}; say where the real scans lie with PANFM_REAL_DATA")
    rows = [
        ScanRow(subject=path.name.partition("_")[0], organ="brain", path=path, window=BRAIN_WINDOW) for path in paths
    ]
    write_scan_table(site / "scans.csv", rows)
    return rows


def lines(folder: Path) -> Iterator[Line]:
    """All rows, one after the other."""
    site = folder / "site"
    _brain_rows(site)
    yield from prepare_lines(site, folder)
    yield from crop_lines(site, folder / "2 mm-2-0")
    (folder / "noise").mkdir()
    noise = write_store(folder / "noise", 2 * BATCH_SIZE, sparse=False)
    dataset = SubjectDataset(noise, SEVEN_ORGANS, {organ: OrganGrid() for organ in SEVEN_ORGANS})
    yield batch_line(dataset)
    yield from loader_lines(dataset, AugmentConfig(), "augmentation of the recipes")
    yield from loader_lines(dataset, ALL_CHANGES, "every augmentation on")
    (folder / "large").mkdir()
    yield from large_lines(folder / "large")


def main() -> None:
    head = [
        "# From scans to batches\n",
        f"{provenance()}.\n",
        "| what | held to | measured | holds |",
        "|---|---|---|---|",
    ]
    print("\n".join(head), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in lines(Path(folder)):
            rows.append(str(row))
            print(row, flush=True)
    foot = (
        "\nMade by `PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/data.py`, whose first paragraph says what is compared. "
        "Times are of the wall clock; medians."
    )
    if not QUICK:
        (ROOT / "benchmarks" / "data.md").write_text("\n".join([*head, *rows, foot, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
