"""Followers beside a run: they see all of it while it goes on, and nothing that befalls them befalls the run."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from panfm.errors import ConfigError, DataError
from panfm.reporting import followers
from panfm.reporting.follow import Entry
from panfm.reporting.followers import catch_up, follow_once, follow_until, following
from panfm.reporting.record import Event, RoundStarted, to_line

Run = Callable[..., list[Event]]


class _Listener:
    """Remembers what it took; fails from a line on."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.lines: list[int] = []
        self.closed = False
        self._fails_at = fails_at

    def take(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.line == self._fails_at:
                raise DataError("the store is full")
            self.lines.append(entry.line)

    def close(self) -> None:
        self.closed = True


def _append(folder: Path, number: int) -> None:
    with (folder / "record.jsonl").open("a") as file:
        file.write(to_line(RoundStarted(round=number, sites=[])) + "\n")


def test_one_that_fails_is_left_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followers, "POLL_S", 0.01)
    sound, broken, stop = _Listener(), _Listener(fails_at=2), threading.Event()
    _append(tmp_path, 1)
    thread = threading.Thread(target=follow_until, args=(stop, tmp_path, [sound, broken]))
    with caplog.at_level(logging.WARNING):
        thread.start()
        for number in range(2, 6):
            _append(tmp_path, number)
        stop.set()
        thread.join()
    assert sound.lines == [1, 2, 3, 4, 5], "what came before the end was seen to the end"
    assert max(broken.lines) == 1
    assert (sound.closed, broken.closed) == (True, True)
    assert "no longer follows the run: the store is full" in caplog.text


def test_a_damaged_record_ends_the_following_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followers, "open_followers", lambda *_a, **_k: [_Listener()])
    with following(tmp_path, tensorboard=True, mlflow=""):
        (tmp_path / "record.jsonl").write_text("{]\n")
    assert "no longer followed" in caplog.text


def test_nobody_asked_for_starts_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with following(tmp_path, tensorboard=False, mlflow=""):
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_is_followed_to_its_end_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = _Listener()
    monkeypatch.setattr(followers, "open_followers", lambda *_a, **_k: [listener])

    def run() -> None:
        with following(tmp_path, tensorboard=True, mlflow=""):
            _append(tmp_path, 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert listener.lines == [1]
    assert listener.closed


def test_once_takes_what_is_there(tmp_path: Path) -> None:
    _append(tmp_path, 1)
    _append(tmp_path, 2)
    listener = _Listener()
    assert follow_once(tmp_path, [listener]) == 2
    assert (listener.lines, listener.closed) == ([1, 2], True)


@pytest.fixture
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    monkeypatch.setitem(sys.modules, "mlflow.exceptions", None)


@pytest.mark.usefixtures("no_mlflow")
def test_what_cannot_follow_is_told_before_the_run(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="not installed"),
        following(tmp_path, tensorboard=False, mlflow="nowhere://x"),
    ):
        pytest.fail("the run had begun")


@pytest.mark.usefixtures("no_mlflow")
def test_catching_up_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catch_up(tmp_path, tensorboard=False, mlflow="nowhere://x")
    assert "not followed to its end" in caplog.text
