"""The record's writer: what it wrote is on disk and whole, also after a process that was killed in the middle of a line."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from panfm.reporting.record import Event, RoundStarted, SiteRejected, read_record, to_line
from server.run_folder import RECORD_FILE
from server.run_record import RunRecord

EVENTS: list[Event] = [
    SiteRejected(site="north", reason="two\nlines and a £"),
    RoundStarted(round=1, sites=["a", "b"]),
    RoundStarted(round=2, sites=[]),
]


def test_events_are_read_back_in_order(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "new" / "run")
    for event in EVENTS:
        record.write(event)
    assert list(read_record(tmp_path / "new" / "run" / RECORD_FILE)) == EVENTS


def test_each_event_is_flushed_to_disk_before_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    record = RunRecord(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda file: seen.append(os.fstat(file).st_size))
    record.write(EVENTS[1])
    assert seen == [(tmp_path / RECORD_FILE).stat().st_size]


def test_half_a_line_of_a_killed_process_is_cut_wherever_it_was_cut(tmp_path: Path) -> None:
    """Every prefix of the last line; what was whole before it stays, and what comes after can be read."""
    path = tmp_path / RECORD_FILE
    whole, last = to_line(EVENTS[0]) + "\n", to_line(EVENTS[1]).encode()
    for length in range(len(last)):
        path.write_bytes(whole.encode() + last[:length])
        RunRecord(tmp_path).write(EVENTS[2])
        assert list(read_record(path)) == [EVENTS[0], EVENTS[2]], length


def test_whole_line_that_lacks_only_its_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / RECORD_FILE
    path.write_text(to_line(EVENTS[0]) + "\n" + to_line(EVENTS[1]))
    RunRecord(tmp_path).write(EVENTS[2])
    assert list(read_record(path)) == EVENTS


def test_whole_record_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / RECORD_FILE
    path.write_text(to_line(EVENTS[0]) + "\n")
    before = path.read_bytes()
    RunRecord(tmp_path)
    assert path.read_bytes() == before


def test_witness_holds_as_long_as_nothing_before_it_changes(tmp_path: Path) -> None:
    record = RunRecord(tmp_path)
    witnesses = [record.witness()]
    for event in EVENTS:
        record.write(event)
        witnesses.append(record.witness())
    content = (tmp_path / RECORD_FILE).read_bytes()
    assert witnesses[-1].sha256 == hashlib.sha256(content).hexdigest()
    again = RunRecord(tmp_path)
    assert again.witness() == witnesses[-1]
    assert all(again.begins_with(witness) for witness in witnesses)

    (tmp_path / RECORD_FILE).write_bytes(content[:-1] + b" \n")
    assert [again.begins_with(witness) for witness in witnesses] == [True, True, True, False]
    (tmp_path / RECORD_FILE).write_bytes(content[: witnesses[1].size_bytes])
    assert [again.begins_with(witness) for witness in witnesses] == [True, True, False, False]
