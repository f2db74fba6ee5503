"""The shelf for parcels of tasks to come: bounded, in order of rounds, and honest about what is not there."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from panfm.errors import ProtocolError
from panfm.protocol import ParcelLabel
from panfm.site.parcel_shelf import ParcelShelf, ShelfError
from panfm.wire.parcels import LIMIT_BYTES, Parcel, parcel_of

ONE, TWO, THREE = (parcel_of(body) for body in (b"one", b"two", b"three"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_was_kept_is_found_by_another_process_in_the_order_asked_for(tmp_path: Path) -> None:
    for parcel in (ONE, TWO, ONE):
        ParcelShelf(tmp_path).keep("run", 1, parcel)
    assert ParcelShelf(tmp_path).take("run", 1, [TWO.label, ONE.label]) == [TWO, ONE]
    assert len(_files(tmp_path)) == 2


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    shelf = ParcelShelf(tmp_path)
    shelf.keep("run", 1, ONE)
    for run, number, label in (("run", 1, TWO.label), ("run", 2, ONE.label), ("other", 1, ONE.label)):
        with pytest.raises(ShelfError) as missing:
            shelf.take(run, number, [label])
        assert missing.value.code == "parcels_missing"


def test_a_new_round_pushes_out_the_old_ones_of_its_run(tmp_path: Path) -> None:
    shelf = ParcelShelf(tmp_path)
    for run, number in (("run", 1), ("other", 1), ("run", 2)):
        shelf.keep(run, number, ONE)
    assert shelf.take("run", 2, [ONE.label]) == shelf.take("other", 1, [ONE.label]) == [ONE]
    with pytest.raises(ShelfError):
        shelf.take("run", 1, [ONE.label])


def test_what_lay_for_a_week_is_thrown_away(tmp_path: Path) -> None:
    shelf = ParcelShelf(tmp_path)
    shelf.keep("forgotten", 1, ONE)
    (old,) = {path.parent for path in _files(tmp_path)}
    os.utime(old, (time.time() - 8 * 86_400,) * 2)
    shelf.keep("run", 1, TWO)
    assert [path.read_bytes() for path in _files(tmp_path)] == [b"two"]


def test_after_the_round_nothing_is_left(tmp_path: Path) -> None:
    shelf = ParcelShelf(tmp_path)
    shelf.clear("run", 1)
    shelf.keep("run", 1, ONE)
    shelf.keep("other", 1, TWO)
    shelf.clear("run", 1)
    assert [path.read_bytes() for path in _files(tmp_path)] == [b"two"]


@pytest.mark.parametrize("shelf_of", [{"most_bytes": 7}, {"most_parcels": 2}])
def test_a_full_shelf_takes_nothing_more(tmp_path: Path, shelf_of: dict[str, int]) -> None:
    shelf = ParcelShelf(tmp_path, **shelf_of)
    for parcel in (ONE, TWO, TWO):
        shelf.keep("run", 1, parcel)
    with pytest.raises(ShelfError) as full:
        shelf.keep("run", 1, THREE)
    assert full.value.code == "parcels_full"
    assert shelf.take("run", 1, [ONE.label, TWO.label]) == [ONE, TWO]
    shelf.clear("run", 1)
    shelf.keep("run", 1, THREE)


def test_bytes_that_are_not_those_of_the_digest_are_not_kept(tmp_path: Path) -> None:
    huge = parcel_of(bytes(LIMIT_BYTES + 1))
    for parcel in (Parcel(b"one", TWO.sha256), Parcel(b"one", "../../up"), huge):
        with pytest.raises(ProtocolError):
            ParcelShelf(tmp_path).keep("run", 1, parcel)
    assert _files(tmp_path) == []


@pytest.mark.parametrize("run", ["../../up", "/etc/passwd", "", "a\0b", "x" * 500, "ü"])
@pytest.mark.parametrize("number", [1, -1, 10**6])
def test_no_run_or_round_leaves_the_folder(tmp_path: Path, run: str, number: int) -> None:
    shelf = ParcelShelf(tmp_path / "shelf")
    shelf.keep(run, number, ONE)
    assert shelf.take(run, number, [ONE.label]) == [ONE]
    (path,) = _files(tmp_path)
    assert len(path.relative_to(tmp_path / "shelf").parts) == 3


@pytest.mark.parametrize("sha256", ["../x", "", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_no_label_is_a_path(sha256: str) -> None:
    with pytest.raises(ValueError, match="label"):
        ParcelLabel(sha256=sha256, size_bytes=1)
