"""The audit log on disk: what is acknowledged survives any crash, and what is not never counts."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from panfm.errors import AuditError
from panfm.signing import public_hex
from panfm.site.audit_chain import EMPTY, Anchor, Head, Inspection, after, digest_of, make_line, read_line
from panfm.site.audit_log import ANCHOR, LOG, STATE, TORN_TAIL, AuditLog, has_log, inspect_folder

KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    """A log of three entries."""
    log = AuditLog.create(tmp_path, KEY, {"site": "north"})
    log.append("task_received", {"round": 1})
    log.append("answer_sent", {"round": 1})
    return log


def _look(folder: Path) -> Inspection:
    return inspect_folder(folder, public_hex(KEY))


def _events(folder: Path) -> list[str]:
    found = _look(folder)
    assert found.fault is None
    return [entry.event for entry in found.entries]


def _next_line(folder: Path, event: str = "answer_sent") -> bytes:
    found = _look(folder)
    return make_line(KEY, found.head, "2026-03-04T05:06:07.890Z", event, {"round": 2})


def _add(folder: Path, content: bytes) -> None:
    with (folder / STATE / LOG).open("ab") as stream:
        stream.write(content)


def test_entries_are_chained_anchored_and_private(log: AuditLog, tmp_path: Path) -> None:
    digest = log.append("answer_sent", {"round": 2})
    content = (tmp_path / STATE / LOG).read_bytes()
    assert digest == hashlib.sha256(content.splitlines()[-1]).hexdigest()
    assert log.head() == Head(4, digest) == AuditLog.open(tmp_path, KEY).head()
    assert _events(tmp_path) == ["log_opened", "task_received", "answer_sent", "answer_sent"]
    for name, mode in (("", 0o700), (LOG, 0o600), (ANCHOR, 0o600)):
        assert (tmp_path / STATE / name).stat().st_mode & 0o777 == mode
    assert sorted(path.name for path in (tmp_path / STATE).iterdir()) == [ANCHOR, LOG]


def test_first_entry_names_the_key(log: AuditLog, tmp_path: Path) -> None:
    assert _look(tmp_path).entries[0].about == {"site": "north", "public_key": public_hex(KEY)}


def test_a_log_is_begun_once(log: AuditLog, tmp_path: Path) -> None:
    before = (tmp_path / STATE / LOG).read_bytes()
    with pytest.raises(AuditError, match="already"):
        AuditLog.create(tmp_path, KEY, {})
    (tmp_path / STATE / LOG).unlink()
    with pytest.raises(AuditError, match="already"):  # the anchor remembers
        AuditLog.create(tmp_path, KEY, {})
    (tmp_path / STATE / LOG).write_bytes(before)
    assert log.head().length == 3


@pytest.mark.parametrize("done", [0, 1, 2])
def test_beginning_that_was_cut_short_can_be_begun_again(tmp_path: Path, done: int) -> None:
    """Power went after the folder, after the anchor, or after the empty log was made."""
    (tmp_path / STATE).mkdir()
    if done >= 1:
        shutil.copy(_begun_elsewhere(tmp_path), tmp_path / STATE / ANCHOR)
    if done >= 2:
        (tmp_path / STATE / LOG).touch()
    assert not has_log(tmp_path)
    AuditLog.create(tmp_path, KEY, {})
    assert _events(tmp_path) == ["log_opened"]


def _begun_elsewhere(tmp_path: Path) -> Path:
    """An anchor before the first line, of a key that was never kept."""
    place = tmp_path / "elsewhere" / ANCHOR
    place.parent.mkdir()
    other = AuditLog(place.parent, Ed25519PrivateKey.generate(), "")
    other._replace_anchor(other._draft_anchor(Anchor(head=EMPTY, size_bytes=0)))
    return place


def test_no_log_and_another_key_stop_the_site(log: AuditLog, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="of another key"):
        AuditLog.open(tmp_path, Ed25519PrivateKey.generate())
    with pytest.raises(AuditError, match="run `panfm site init`"):
        AuditLog.open(tmp_path / "nowhere", KEY)
    with pytest.raises(AuditError, match="there is no"):
        inspect_folder(tmp_path / "nowhere", public_hex(KEY))


# ---- what tampering does to the next entry --------------------------------------------------------------------------


def _cut_last_line(state: Path) -> None:
    path = state / LOG
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _cut_last_byte(state: Path) -> None:
    os.truncate(state / LOG, (state / LOG).stat().st_size - 1)


def _change_last_line(state: Path) -> None:
    (state / LOG).write_bytes((state / LOG).read_bytes().replace(b'"answer_sent"', b'"answer_kept"'))


def _add_foreign_line(state: Path) -> None:
    _add(state.parent, b"hello\n")


def _add_foreign_bytes(state: Path) -> None:
    _add(state.parent, b"hello")


def _add_much(state: Path) -> None:
    _add(state.parent, b"\0" * 10**6)


def _remove_anchor(state: Path) -> None:
    (state / ANCHOR).unlink()


def _change_anchor(state: Path) -> None:
    (state / ANCHOR).write_bytes((state / ANCHOR).read_bytes().replace(b'"length":3', b'"length":2'))


def _remove_log(state: Path) -> None:
    (state / LOG).unlink()


@pytest.mark.parametrize(
    "tamper",
    [
        _cut_last_line,
        _cut_last_byte,
        _change_last_line,
        _add_foreign_line,
        _add_foreign_bytes,
        _add_much,
        _remove_anchor,
        _change_anchor,
        _remove_log,
    ],
)
def test_tampered_end_stops_the_site_and_is_not_healed(
    log: AuditLog, tmp_path: Path, tamper: Callable[[Path], None]
) -> None:
    tamper(tmp_path / STATE)
    before = {path.name: path.read_bytes() for path in (tmp_path / STATE).iterdir()}
    with pytest.raises(AuditError):
        log.append("answer_sent", {})
    with pytest.raises(AuditError):
        AuditLog.open(tmp_path, KEY)
    assert {path.name: path.read_bytes() for path in (tmp_path / STATE).iterdir()} == before
    with contextlib.suppress(AuditError):  # of a log that is gone
        assert _look(tmp_path).fault is not None


# ---- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10, 200, -1])
def test_torn_tail_is_moved_aside_and_an_entry_says_so(log: AuditLog, tmp_path: Path, size: int) -> None:
    torn = _next_line(tmp_path)[:size]
    _add(tmp_path, torn)
    found = _look(tmp_path)
    assert (found.fault, found.unfinished_bytes) == (None, len(torn))

    log.append("answer_sent", {"round": 2})

    assert _events(tmp_path) == ["log_opened", "task_received", "answer_sent", TORN_TAIL, "answer_sent"]
    said = _look(tmp_path).entries[3].about
    assert said == {"size_bytes": len(torn), "digest": hashlib.sha256(torn).hexdigest()}
    assert (tmp_path / STATE / "audit.torn-4").read_bytes() == torn
    assert AuditLog.open(tmp_path, KEY).head().length == 5, "said once"


def test_whole_line_without_its_anchor_counts(log: AuditLog, tmp_path: Path) -> None:
    _add(tmp_path, _next_line(tmp_path))
    assert AuditLog.open(tmp_path, KEY).head().length == 4
    log.append("answer_sent", {"round": 3})
    assert _events(tmp_path)[3:] == ["answer_sent", "answer_sent"]


class _PowerCut(BaseException):
    """Nothing after it happens."""


def _cut_power_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the so-manieth call that touches the disk not happen; a write happens by half."""
    left = [step]

    def cut(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write" and left[0] == -1:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                raise _PowerCut
            return real(*arguments, **settings)

        return call

    for name in ("write", "fsync", "ftruncate"):
        patch.setattr(os, name, cut(name, getattr(os, name)))
    patch.setattr(Path, "replace", cut("replace", Path.replace))


STEPS_OF_ONE_ENTRY, STEPS_OF_MOVING_ASIDE = 6, 5


@pytest.mark.parametrize(
    ("torn_before", "step"),
    [(False, step) for step in range(STEPS_OF_ONE_ENTRY + 1)]
    + [(True, step) for step in range(STEPS_OF_MOVING_ASIDE + 2 * STEPS_OF_ONE_ENTRY + 1)],
)
def test_power_cut_at_any_step_loses_nothing_acknowledged(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn_before: bool, step: int
) -> None:
    if torn_before:
        _add(tmp_path, _next_line(tmp_path)[:100])
    with monkeypatch.context() as patch:
        _cut_power_at(step, patch)
        acknowledged = True
        try:
            log.append("answer_sent", {"round": 2})
        except _PowerCut:
            acknowledged = False
    assert _look(tmp_path).fault is None, "a crash never looks like tampering"

    AuditLog.open(tmp_path, KEY).append("answer_sent", {"round": 3})

    rounds = [entry.about.get("round") for entry in _look(tmp_path).entries if entry.event != TORN_TAIL]
    assert rounds[:3] == [None, 1, 1]
    assert rounds[3:] in ([2, 3], [3])
    assert 2 in rounds or not acknowledged
    assert _events(tmp_path).count(TORN_TAIL) >= torn_before
    all_steps = STEPS_OF_ONE_ENTRY + torn_before * (STEPS_OF_MOVING_ASIDE + STEPS_OF_ONE_ENTRY)
    assert acknowledged == (step == all_steps), "every step was cut once"


KEEPS_APPENDING = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from panfm.site.audit_log import AuditLog

folder, key, name, times = sys.argv[1:]
log = AuditLog.open(Path(folder), Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key)))
for number in range(int(times)):
    print(log.append("answer_sent", {"run": name, "round": number}), flush=True)
"""


def _appending(folder: Path, name: str, times: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", KEEPS_APPENDING, str(folder), KEY.private_bytes_raw().hex(), name, str(times)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_two_processes_append_and_the_chain_holds(log: AuditLog, tmp_path: Path) -> None:
    both = [_appending(tmp_path, name, 60) for name in ("first", "second")]
    told = [process.communicate()[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    found = _look(tmp_path)
    assert (found.fault, found.head.length) == (None, 3 + 2 * 60)
    for name, digests in zip(("first", "second"), told, strict=True):
        assert [e.about["round"] for e in found.entries if e.about.get("run") == name] == list(range(60))
        lines = (tmp_path / STATE / LOG).read_bytes().splitlines()
        assert [digest_of(line) for line in lines if f'"run":"{name}"'.encode() in line] == digests


def test_killed_process_leaves_all_that_was_acknowledged(log: AuditLog, tmp_path: Path) -> None:
    for after_lines in (1, 4, 9):
        process = _appending(tmp_path, "killed", 10**6)
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(after_lines)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
        process.wait()
        process.stdout.close()
        found = _look(tmp_path)
        assert found.fault is None
        digests = {digest_of(line) for line in (tmp_path / STATE / LOG).read_bytes().splitlines()}
        assert set(told) <= digests
        length = AuditLog.open(tmp_path, KEY).head().length
        assert length >= found.head.length
    assert _look(tmp_path).fault is None


# ---- a disk that takes no more --------------------------------------------------------------------------------------

FILLS_THE_DISK = """
import resource, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from panfm.errors import AuditError
from panfm.site.audit_log import AuditLog

folder, key, room = sys.argv[1:]
log = AuditLog.open(Path(folder), Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key)))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
try:
    log.append("answer_sent", {"round": 2})
except AuditError as error:
    print(error)
    print(log.head().length)
"""


@pytest.mark.parametrize("more", [0, 1, 150])
def test_disk_that_is_full_within_a_line_leaves_no_part_of_it(log: AuditLog, tmp_path: Path, more: int) -> None:
    """A limit of the operating system: it takes what fits, and then no more."""
    before = (tmp_path / STATE / LOG).read_bytes()
    words = [str(tmp_path), KEY.private_bytes_raw().hex(), str(len(before) + more)]
    done = subprocess.run([sys.executable, "-c", FILLS_THE_DISK, *words], capture_output=True, text=True, check=True)
    line, length = done.stdout.splitlines()
    assert line.startswith("the audit log cannot be written (File too large), so nothing leaves the site; make room")
    assert length == "3"
    assert (tmp_path / STATE / LOG).read_bytes() == before
    log.append("answer_sent", {"round": 2})
    assert _events(tmp_path)[3:] == ["answer_sent"]


def test_disk_too_full_for_the_anchor_changes_nothing(
    log: AuditLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (tmp_path / STATE / LOG).read_bytes()

    def full(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(AuditError, match="No space left on device"):
            log.append("answer_sent", {})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(AuditError, match="No space left on device"):
            log.append("answer_sent", {})
    assert (tmp_path / STATE / LOG).read_bytes() == before
    assert log.head().length == 3


def test_line_is_on_disk_before_its_anchor_and_both_before_the_answer(
    log: AuditLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_fsync(descriptor)

    def replace(source: Path, place: Path) -> Path:
        steps.append(f"-> {place.name}")
        return real_replace(source, place)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    log.append("answer_sent", {})
    assert steps == [f"{ANCHOR}.draft", LOG, f"-> {ANCHOR}", STATE]


def test_after_counts_bytes_and_lines() -> None:
    line = make_line(KEY, EMPTY, "", "x", {})
    anchor = after(Anchor(head=EMPTY, size_bytes=0), line)
    assert (anchor.head.length, anchor.size_bytes) == (1, len(line))
    assert read_line(line[:-1], public_hex(KEY)) is not None
