"""The record of a run: what is written is read again, and damage is named and not guessed at."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panfm.errors import DataError
from panfm.reporting.record import (
    SCHEMA,
    AnswersAccepted,
    Event,
    FaultsPlanned,
    ModelEvaluated,
    ProbeTable,
    RoundEvaluated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteAnswered,
    SiteEvaluated,
    SiteJoined,
    SiteLeft,
    SiteRejected,
    TrainerAudited,
    events_of,
    read_record,
    to_line,
)

EVENTS: list[Event] = [
    RunStarted(
        run="r",
        recipe="seed: 1\n",
        seed=1,
        rounds=2,
        panfm_version="0",
        torch_version="2",
        flower_version="1",
        group_parameters={"trunk": 10, "brain": 3},
    ),
    SiteJoined(site="a", organs=["brain"], panfm_version="0", num_subjects={"brain": 3}),
    SiteRejected(site="b", reason="older protocol: \u00e9\u2028"),
    RoundStarted(round=1, sites=["a"]),
    SiteAnswered(round=1, site="a", outcome="accepted", seconds=1.5, num_subjects=3, metrics={"share": {"brain": 1.0}}),
    SiteAnswered(round=1, site="c", outcome="late", reason="no answer in time"),
    RoundFinished(
        round=1,
        seconds=2.0,
        weights={"trunk": {"a": 1.0}},
        unchanged_groups={"heart": "nobody"},
        delta_norm={"trunk": 0.1},
        model_digest="ab",
    ),
    SiteLeft(site="a", round=2),
    RunResumed(run="r", rounds_done=0, panfm_version="0", torch_version="2", flower_version="1", note="damaged"),
    AnswersAccepted(round=1, updates={"a": "ab"}),
    SiteEvaluated(round=1, site="a", outcome="accepted", num_subjects=2, metrics={"loss": 0.5}),
    RoundEvaluated(
        round=1, sites=["a"], metrics={"loss": 0.5}, score=0.5, best_round=1, model_digest="ab", seconds=1.0
    ),
    FaultsPlanned(seed=1, faults=[{"round": 1, "site": "c", "kind": "slow"}]),
    ProbeTable(title="age", num_train=3, num_test=2, rows=[{"embedding": "PCA", "value": 0.5, "low": None}]),
    ModelEvaluated(
        title="m",
        model_digest="a",
        settings={"seed": 0},
        organs=["brain"],
        num_fit=3,
        num_test=2,
        num_swept=1,
        scores=[{"probe": "k-NN", "target": "age", "metric": "R2", "value": 0.1, "low": None}],
        notes=["cat_a was not asked"],
    ),
    TrainerAudited(
        mode="dp_full",
        canaries=1000,
        noise_multiplier=2.0,
        sampling_rate=0.25,
        steps=20,
        delta=1e-5,
        claimed=2.8,
        at_least=0.6,
        doubt=0.01,
        signal=0.9,
        signal_band=0.1,
        noise=1.0,
        noise_band=0.03,
        found=["noise: half of it"],
    ),
    RunFinished(status="complete", reason="", rounds_done=1, seconds=3.0, model="model"),
]


def _write(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "record.jsonl"
    path.write_text("\n".join(lines) + end)
    return path


def test_every_event_comes_back(tmp_path: Path) -> None:
    assert {type(event) for event in EVENTS} == set(Event.__args__)
    path = _write(tmp_path, [to_line(event) for event in EVENTS])
    assert list(read_record(path)) == EVENTS
    answers = events_of(SiteAnswered, EVENTS)
    assert [answer.outcome for answer in answers] == ["accepted", "late"]


@given(site=st.text(), reason=st.text(st.characters()), seconds=st.floats(allow_nan=False))
def test_any_text_stays_on_its_line(site: str, reason: str, seconds: float) -> None:
    event = SiteAnswered(round=1, site=site, outcome="failed", reason=reason, seconds=seconds)
    line = to_line(event)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    values = json.loads(line)
    assert (values["site"], values["reason"], values["seconds"]) == (site, reason, seconds)


def test_a_line_says_schema_event_and_time() -> None:
    values = json.loads(to_line(EVENTS[3], datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)))
    assert values == {
        "schema": SCHEMA,
        "event": "round_started",
        "time": "2026-01-02T03:04:05.678+00:00",
        "round": 1,
        "sites": ["a"],
        "passed_over": [],
        "deadline_s": None,
    }


@pytest.mark.parametrize("kind", Event.__args__)
def test_no_field_hides_what_every_line_says(kind: type[Event]) -> None:
    assert not {"schema", "event", "time"} & {f.name for f in fields(kind)}


@pytest.mark.parametrize("length", [1, 10, 30])
def test_a_half_written_last_line_is_left_out(tmp_path: Path, length: int) -> None:
    lines = [to_line(event) for event in EVENTS[:3]]
    path = _write(tmp_path, [*lines, to_line(EVENTS[3])[:length]], end="")
    assert list(read_record(path)) == EVENTS[:3]


@pytest.mark.parametrize(
    "damaged",
    [
        '{"schema": 1, "ev',
        "3",
        "null",
        "[]",
        "{}",
        '{"schema": "1", "event": "round_started", "round": 1, "sites": []}',
        '{"schema": 1, "event": ["round_started"]}',
        '{"schema": 1, "event": "round_started", "round": 1}',
    ],
)
def test_damage_in_the_middle_is_named(tmp_path: Path, damaged: str) -> None:
    path = _write(tmp_path, [to_line(EVENTS[0]), damaged, to_line(EVENTS[1])])
    events = read_record(path)
    assert next(events) == EVENTS[0]
    with pytest.raises(DataError, match=r"record\.jsonl line 2 is damaged"):
        next(events)


def test_bytes_that_are_no_text_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n" + to_line(EVENTS[0]).encode() + b"\n")
    with pytest.raises(DataError, match="line 1 is damaged"):
        list(read_record(path))


def test_readers_skip_what_they_do_not_know(tmp_path: Path) -> None:
    later = json.dumps({"schema": SCHEMA, "event": "comet_seen", "time": "", "tail": 3})
    wider = json.dumps({**json.loads(to_line(EVENTS[3])), "weather": "fine"})
    assert list(read_record(_write(tmp_path, [later, "", wider]))) == [EVENTS[3]]


def test_a_newer_schema_says_to_update(tmp_path: Path) -> None:
    newer = json.dumps({"schema": SCHEMA + 1, "event": "round_started", "shape": "unknown"})
    with pytest.raises(DataError, match="update panfm"):
        list(read_record(_write(tmp_path, [newer])))


def test_no_record_says_where_to_look(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder of a run"):
        list(read_record(tmp_path / "record.jsonl"))
