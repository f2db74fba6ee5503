"""`panfm data prepare` killed, starved of disk, and started again: the store comes out as if nothing had happened.

Real processes with two workers, for what is promised is about kill -9 and a full disk and not about exceptions.
"""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from panfm.data.manifest import ScanRow, write_scan_table
from panfm.data.prepare import prepare_store
from panfm.recipes import read_recipe

WriteScan = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[3]

RECIPE = """
organs:
  brain: {shape: [24, 24, 24], spacing_mm: [4.0, 4.0, 4.0]}
  kidney: {shape: [16, 8, 8], spacing_mm: [4.0, 4.0, 4.0]}
"""
BRAIN_BYTES, KIDNEY_BYTES = 128 + 2 * 28**3, 128 + 2 * 20 * 12 * 12
"""Of a stored volume: numpy's header and half-precision voxels with a margin of 2."""
SUBJECTS = 10

_COMMAND = """
from panfm.data import prepare
prepare._BYTES_PER_PROCESS = 1  # two workers for few scans, too
from panfm.cli.main import main
main()
"""


@pytest.fixture
def site(tmp_path: Path, write_scan: WriteScan) -> Path:
    """Ten subjects with a brain and a kidney each, some tens of milliseconds of work a scan."""
    folder = tmp_path / "site"
    distance = np.linalg.norm(np.indices((64, 64, 64)) - 31.5, axis=0)
    rows = []
    for number in range(SUBJECTS):
        noise = np.random.default_rng(number).integers(0, 200, distance.shape)
        path = write_scan(folder / f"s{number}.nii.gz", np.where(distance < 24, 500 + noise, 0).astype(np.int16))
        rows += [ScanRow(subject=f"s{number}", organ=organ, path=path) for organ in ("brain", "kidney")]
    write_scan_table(folder / "scans.csv", rows)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _files(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.fixture
def whole(site: Path, tmp_path: Path) -> dict[str, bytes]:
    """The store of a pass that nobody disturbed, by one process."""
    recipe = read_recipe(str(site / "recipe.yaml"))
    return _files(prepare_store(site, tmp_path / "whole", recipe.organs, recipe.prepare).folder)


def _command(site: Path, store: Path) -> list[str]:
    options = ["--store", str(store), "--recipe", str(site / "recipe.yaml"), "--workers", "2"]
    return [sys.executable, "-c", _COMMAND, "data", "prepare", str(site), *options]


def _finish(site: Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(site, store), cwd=ROOT, capture_output=True, text=True, check=False)


def _kill_after(site: Path, store: Path, volumes: int, delay_s: float = 0.0) -> None:
    """Start a pass, and kill its whole process group once so many volumes are there, or when it is done."""
    process = subprocess.Popen(_command(site, store), cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and len(list(store.glob("*/*.npy"))) < volumes:
        time.sleep(0.002)
    time.sleep(delay_s)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _counted(store: Path) -> Iterator[Path]:
    """Volumes that a later pass would take as they are: those whose digest is the one in their record."""
    for record in store.glob("*/*.json"):
        volume = record.with_suffix(".npy")
        digest = json.loads(record.read_text())["digest"]
        if volume.is_file() and hashlib.sha256(volume.read_bytes()).hexdigest() == digest:
            yield volume


def test_a_killed_pass_goes_on_to_the_same_bytes(site: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    store = tmp_path / "cut"
    _kill_after(site, store, volumes=4)
    assert not (store / "table.csv").exists(), "the kill came in the midst of the pass"
    counted = {volume: volume.stat().st_mtime_ns for volume in _counted(store)}
    assert len(counted) >= 2
    assert all(volume.read_bytes() == whole[volume.relative_to(store).as_posix()] for volume in counted)
    done = _finish(site, store)
    assert (done.returncode, done.stdout.split(", ")[0]) == (0, "prepared: 20 of 20 scans")
    assert _files(store) == whole
    assert {volume: volume.stat().st_mtime_ns for volume in counted} == counted, "what was done was not done again"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_moments_change_nothing(site: Path, tmp_path: Path, whole: dict[str, bytes], seed: int) -> None:
    """Several kills in one store, at a random count of volumes and a random moment after it, the last pass undisturbed."""
    store, draw = tmp_path / "cut", random.Random(seed)
    for _ in range(5):
        _kill_after(site, store, volumes=draw.randrange(1, 2 * SUBJECTS), delay_s=draw.uniform(0, 0.3))
        for volume in _counted(store):
            assert volume.read_bytes() == whole[volume.relative_to(store).as_posix()]
    assert _finish(site, store).returncode == 0
    assert _files(store) == whole


def test_a_disk_that_takes_no_more_stops_it_in_one_line(site: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """No file may pass a size between a kidney's and a brain's; afterwards it may again, and the pass goes on."""
    store, limit = tmp_path / "full", (KIDNEY_BYTES + BRAIN_BYTES) // 2
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))  # inherited by the command and its workers
    try:
        stopped = _finish(site, store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    _is_stopped(stopped, store, "File too large")
    assert _finish(site, store).returncode == 0
    assert _files(store) == whole


@pytest.mark.slow
def test_a_full_disk_stops_it_in_one_line_and_room_lets_it_go_on(
    site: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 4 * BRAIN_BYTES
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode != 0:
        pytest.skip("this user may not mount a small disk; the limit on file sizes above stands for it")
    try:
        _is_stopped(_finish(site, disk / "store"), disk / "store", "No space left on device")
        subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
        assert _finish(site, disk / "store").returncode == 0
        assert _files(disk / "store") == whole
    finally:
        subprocess.run(["umount", disk], check=True)


def _is_stopped(stopped: subprocess.CompletedProcess[str], store: Path, why: str) -> None:
    """One line that says what to do, an exit code, nothing half-written, and no table."""
    assert stopped.returncode == 3
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.splitlines()[-1] == (
        f"panfm: cannot write the store {store} ({why}); scans prepared so far are whole and stay: free space or choose "
        "another folder, and run the same command again"
    )
    assert not list(store.rglob("*.tmp"))
    assert not (store / "table.csv").exists()
