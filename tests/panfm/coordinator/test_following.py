"""Following a run: told once, in order, across the deaths of its processes, and to its end."""
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from panfm.coordinator import following
from panfm.coordinator.following import follow_run
from panfm.coordinator.submissions import KEEPER, PERSON, Submission, note
from panfm.errors import RunError
from panfm.reporting.record import Event, RoundFinished, RunFinished, RunResumed, SiteJoined, to_line
from panfm.reporting.telling import Line


def _append(folder: Path, *events: Event) -> None:
    with (folder / "record.jsonl").open("a") as file:
        file.writelines(to_line(event) + "\n" for event in events)


def _hand(folder: Path, by: str, events: int, run_id: str = "7") -> None:
    note(folder, Submission(run_id=run_id, by=by, at="", events=events, rounds_done=1))


def _round(number: int) -> RoundFinished:
    return RoundFinished(round=number, seconds=2.0, weights={}, unchanged_groups={}, delta_norm={}, model_digest="")


def _ended(status: str, reason: str = "") -> RunFinished:
    return RunFinished(status=status, reason=reason, rounds_done=1, seconds=1.0, model="model")


JOINED = SiteJoined(site="neuro", organs=["brain"], panfm_version="0")
RESUMED = RunResumed(run="r", rounds_done=1, panfm_version="0", torch_version="0", flower_version="0")


class _Meanwhile:
    """Something happens at each pause of the follower."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *steps: object) -> None:
        self._steps = list(steps)
        monkeypatch.setattr(following, "time", SimpleNamespace(sleep=self))

    def __call__(self, _seconds: float) -> None:
        step = self._steps.pop(0)
        assert callable(step)
        step()


def test_record_is_told_as_it_grows_and_over_a_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hand(tmp_path, PERSON, 0)
    _Meanwhile(
        monkeypatch,
        lambda: _append(tmp_path, JOINED),
        lambda: _append(tmp_path, _round(1)),
        lambda: _hand(tmp_path, KEEPER, 2),
        lambda: _append(tmp_path, RESUMED, _round(2), _ended("complete")),
    )
    told: list[Line] = []
    assert follow_run(tmp_path, told.append).status == "complete"
    assert [line.words for line in told] == [
        "neuro joined with brain",
        "round 1 finished after 2 s",
        "the coordinator's program was gone; the run was taken up again after round 1",
        "the run goes on after round 1",
        "round 2 finished after 2 s",
    ]


def test_end_of_before_is_no_end_once_the_run_was_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hand(tmp_path, PERSON, 0)
    _append(tmp_path, JOINED, _round(1), _ended("stopped", "stopped by ada"))
    assert follow_run(tmp_path, lambda _: None).reason == "stopped by ada"
    _hand(tmp_path, PERSON, 3)
    _Meanwhile(monkeypatch, lambda: _append(tmp_path, RESUMED, _round(2), _ended("complete")))
    told: list[Line] = []
    assert follow_run(tmp_path, told.append, skip=3).status == "complete"
    assert [line.words for line in told] == ["the run goes on after round 1", "round 2 finished after 2 s"]


def test_incomplete_run_is_an_error_with_its_reason(tmp_path: Path) -> None:
    _append(tmp_path, _ended("incomplete", "too few sites"))
    with pytest.raises(RunError, match="is incomplete: too few sites"):
        follow_run(tmp_path, lambda _: None)


def test_run_that_was_given_up_is_not_waited_for(tmp_path: Path) -> None:
    _hand(tmp_path, PERSON, 0)
    _append(tmp_path, JOINED)
    _hand(tmp_path, KEEPER, 1)
    _hand(tmp_path, KEEPER, 1, run_id="")
    with pytest.raises(RunError, match="no further than round 1; the coordinator's logs say why"):
        follow_run(tmp_path, lambda _: None)
