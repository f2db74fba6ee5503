"""Folders are written whole or not at all, and are on disk before anybody is told so."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from panfm.durable import flush, write_file, write_folder, write_private


def _two_files(word: str) -> Callable[[Path], None]:
    def fill(draft: Path) -> None:
        (draft / "a.txt").write_text(f"{word} a")
        (draft / "b.txt").write_text(f"{word} b")

    return fill


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which files and folders were flushed, and when something was renamed."""
    seen: list[str] = []
    replace = Path.replace

    def noted_rename(old: Path, new: Path) -> Path:
        seen.append(f"rename to {new.name}")
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", lambda file: seen.append(Path(f"/proc/self/fd/{file}").readlink().name))
    monkeypatch.setattr(Path, "replace", noted_rename)
    return seen


def test_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "down" / "place", _two_files("new"))
    assert _content(tmp_path / "deep" / "down" / "place") == {"a.txt": "new a", "b.txt": "new b"}
    assert [path.name for path in (tmp_path / "deep" / "down").iterdir()] == ["place"]


def test_older_folder_is_replaced_wholly(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old.txt").touch()
    write_folder(tmp_path / "place", _two_files("new"))
    assert sorted(_content(tmp_path / "place")) == ["a.txt", "b.txt"]


def test_failure_while_filling_leaves_what_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "place", _two_files("old"))

    def fail(draft: Path) -> None:
        (draft / "a.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "place", fail)
    assert _content(tmp_path / "place") == {"a.txt": "old a", "b.txt": "old b"}
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "never", fail)
    assert not (tmp_path / "never").exists()


def test_draft_of_a_crash_is_no_part_of_the_next_folder(tmp_path: Path) -> None:
    draft = tmp_path / ".place.draft"
    draft.mkdir()
    (draft / "stray.txt").write_text("left behind")
    write_folder(tmp_path / "place", _two_files("new"))
    assert sorted(_content(tmp_path / "place")) == ["a.txt", "b.txt"]
    assert not draft.exists()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="which file is flushed is read from /proc")
def test_files_are_on_disk_before_the_rename_and_their_folders_after(tmp_path: Path, events: list[str]) -> None:
    write_folder(tmp_path / "state" / "answers" / "place", _two_files("new"))
    rename = events.index("rename to place")
    assert sorted(events[:rename]) == [".place.draft", "a.txt", "b.txt"]
    # The new folder's own name, and the names of the folders that were made for it.
    assert sorted(events[rename + 1 :]) == sorted(["answers", "state", tmp_path.name])


def test_flush_of_something_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "absent")


def test_file_is_flushed_before_it_gets_its_name(tmp_path: Path, events: list[str]) -> None:
    write_file(tmp_path / "a.txt", b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"whole"
    assert events == ["a.txt.tmp", "rename to a.txt"]
    write_file(tmp_path / "a.txt", b"again", flushed=False)
    assert events[2:] == ["rename to a.txt"]


def test_file_that_cannot_be_written_leaves_the_old_one_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_file(tmp_path / "a.txt", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a.txt", b"new")
    assert _content(tmp_path) == {"a.txt": "old"}


def test_private_file_is_its_owners_from_the_first_byte_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        real(descriptor)

    monkeypatch.setattr("os.fsync", look)
    place = tmp_path / "key"
    place.write_text("old")
    place.chmod(0o644)
    before = os.umask(0)
    try:
        write_private(place, b"secret")
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert (place.read_bytes(), place.stat().st_mode & 0o777) == (b"secret", 0o600)
    assert list(tmp_path.iterdir()) == [place]


def test_private_file_that_cannot_be_finished_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_private(tmp_path / "key", b"old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / "key", b"new")
    assert (tmp_path / "key").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
