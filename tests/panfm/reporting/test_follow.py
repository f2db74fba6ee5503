"""Following a record: each whole line once, at whatever byte its writer paused or died."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import DataError
from panfm.reporting.follow import Entry, RecordTail
from panfm.reporting.record import Event, RoundStarted, RunFinished, SiteRejected, to_line

Run = Callable[..., list[Event]]
NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
EVENTS: list[Event] = [
    RoundStarted(round=1, sites=["a"]),
    SiteRejected(site="b", reason="older protocol: \u00e9\u2028"),
    RunFinished(status="complete", reason="", rounds_done=1, seconds=1.0),
]
CONTENT = "".join(to_line(event, NOON) + "\n" for event in EVENTS).encode()


@given(st.lists(st.integers(0, len(CONTENT)), max_size=6).map(sorted))
def test_each_line_comes_once_wherever_the_writer_paused(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    tail, found = RecordTail(folder), list[Entry]()
    for start, end in zip([0, *stops], [*stops, len(CONTENT)], strict=True):
        with (folder / "record.jsonl").open("ab") as file:
            file.write(CONTENT[start:end])
        found += tail.new_entries()
    assert [entry.event for entry in found] == EVENTS
    assert [entry.line for entry in found] == [1, 2, 3]
    assert {entry.seconds for entry in found} == {NOON.timestamp()}
    assert tail.new_entries() == []


def test_a_line_that_was_cut_off_and_written_anew_is_read_once(tmp_path: Path) -> None:
    path, tail = tmp_path / "record.jsonl", RecordTail(tmp_path)
    whole = to_line(EVENTS[0]) + "\n"
    path.write_text(whole + to_line(EVENTS[1])[:20])
    assert len(tail.new_entries()) == 1
    path.write_text(whole + to_line(EVENTS[2]) + "\n")
    assert [entry.event for entry in tail.new_entries()] == [EVENTS[2]]


def test_before_the_first_line_there_is_nothing(tmp_path: Path) -> None:
    assert RecordTail(tmp_path / "not yet").new_entries() == []


def test_unknown_events_are_passed_over_but_counted(tmp_path: Path) -> None:
    unknown = json.dumps({"schema": 1, "event": "moon_rose", "time": NOON.isoformat()})
    (tmp_path / "record.jsonl").write_text(f"{unknown}\n{to_line(EVENTS[0])}\n")
    assert [entry.line for entry in RecordTail(tmp_path).new_entries()] == [2]


@pytest.mark.parametrize(
    ("line", "word"),
    [("{]", "line 1 is damaged"), ('{"schema": 1}', "line 1 is damaged"), ("[]", "damaged")],
)
def test_damage_is_named(tmp_path: Path, line: str, word: str) -> None:
    (tmp_path / "record.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=word):
        RecordTail(tmp_path).new_entries()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    newer = json.loads(to_line(EVENTS[0])) | {"schema": 99}
    (tmp_path / "record.jsonl").write_text(json.dumps(newer) + "\n")
    with pytest.raises(DataError, match="newer panfm"):
        RecordTail(tmp_path).new_entries()


def test_another_run_in_its_place_is_noticed(tmp_path: Path) -> None:
    path, tail = tmp_path / "record.jsonl", RecordTail(tmp_path)
    path.write_bytes(CONTENT)
    tail.new_entries()
    path.write_text(to_line(EVENTS[0]) + "\n")
    with pytest.raises(DataError, match="shorter"):
        tail.new_entries()
